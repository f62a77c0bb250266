"""Least-squares refit: every output projection is solved anew, so that the pruned model's stream follows the dense one.

For a block with kept inputs X `[N, n]`, dense stream S_T and own incoming stream H_S, the projection (W, b) minimises

    ||X W + 1 b - (S_T - H_S)||^2 + damping * mean(diag(Xc' Xc)) * ||W - W0||^2,

with Xc the centred inputs and W0 the weights before. The bias is not damped: it takes up the means (and is all that an
emptied block has left). Only Gram matrices are kept: `[n, n]` and `[n, d]`, float64.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from pyprune.core.anatomy import Anatomy, Block
from pyprune.core.batches import Batch
from pyprune.core.errors import InputError
from pyprune.core.layers import matrix
from pyprune.core.stages import Stages
from pyprune.recovery.blockwise import Outcome, fit_blocks


class LeastSquares:
    """Gram matrices of one block, and their solution: a `Fit` of `recovery.blockwise`."""

    def __init__(self, projection: nn.Module, block: Block, damping: float) -> None:
        self.projection, self.name, self.damping = projection, block.units.name, damping
        d, n = matrix(projection).shape
        device = projection.weight.device
        self.count = 0
        self.xx = torch.zeros(n, n, dtype=torch.float64, device=device)
        self.xt = torch.zeros(n, d, dtype=torch.float64, device=device)
        self.x = torch.zeros(n, dtype=torch.float64, device=device)
        self.t = torch.zeros(d, dtype=torch.float64, device=device)
        self.tt = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, x: torch.Tensor, target: torch.Tensor) -> None:
        # The products run in fp32 at least, sums over batches in fp64.
        x, target = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (x, target))
        self.count += x.shape[0]
        self.xx += x.T @ x
        self.xt += x.T @ target
        self.x += x.sum(0, dtype=torch.float64)
        self.t += target.sum(0, dtype=torch.float64)
        self.tt += target.square().sum(dtype=torch.float64)

    def solve(self) -> Outcome:
        linear = self.projection
        n = matrix(linear).shape[1]
        biased = linear.bias is not None
        old = matrix(linear).detach().double().T
        old_bias = linear.bias.detach().double() if biased else torch.zeros_like(self.t)
        if n == 0 and not biased:
            return Outcome(self.name, False, "no units and no bias")
        mean_x, mean_t = self.x / self.count, self.t / self.count
        gram, cross = self.xx, self.xt
        if biased:
            gram = gram - torch.outer(self.x, mean_x)
            cross = cross - torch.outer(self.x, mean_t)
        before = self._missing(old, old_bias)
        new = old
        if n:
            ridge = self.damping * gram.diagonal().mean() * torch.eye(n, dtype=torch.float64, device=gram.device)
            factor, failed = torch.linalg.cholesky_ex(gram + ridge)
            if failed:
                return Outcome(self.name, False, "singular statistics: more data or more damping is needed")
            new = old + torch.cholesky_solve(cross - gram @ old, factor)
        bias = mean_t - mean_x @ new if biased else old_bias
        if not (torch.isfinite(new).all() and torch.isfinite(bias).all()):
            return Outcome(self.name, False, "the solution is not finite")
        matrix(linear).copy_(new.T)
        if biased:
            linear.bias.copy_(bias)
        return Outcome(self.name, True, before=before, after=self._missing(new, bias))

    def _missing(self, weight: torch.Tensor, bias: torch.Tensor) -> float:
        """||X W + b - T||^2 / ||T||^2 from the Gram matrices."""
        fit = (weight * (self.xx @ weight)).sum() - 2 * (weight * self.xt).sum()
        fit = fit + self.count * bias.square().sum() + 2 * bias @ (self.x @ weight - self.t)
        return float((fit + self.tt).clamp(min=0) / self.tt.clamp(min=torch.finfo(torch.float64).tiny))


def check_damping(damping: float) -> None:
    """Raise InputError unless `refit` can use it."""
    if not (math.isfinite(damping) and damping > 0):
        raise InputError(f"damping={damping} must be positive")


def refit(
    student: nn.Module,
    student_anatomy: Anatomy,
    teacher: nn.Module,
    teacher_anatomy: Anatomy,
    batches: list[Batch],
    damping: float = 1e-2,
    stages: Stages | None = None,
    memory: float = math.inf,
) -> list[Outcome]:
    """Refit all output projections of the pruned `student` in place to the dense `teacher`; what became of each block.

    `damping` is relative to the mean diagonal of the block's centred Gram matrix. At most `memory` bytes of streams and
    activations are kept. Raises InputError when `damping` is not positive.
    """
    check_damping(damping)

    def start(projection: nn.Module, block: Block) -> LeastSquares:
        return LeastSquares(projection, block, damping)

    stages = stages or Stages(quiet=True)
    return fit_blocks(student, student_anatomy, teacher, teacher_anatomy, batches, start, stages, "refit", memory)
