"""Mask tuning (Kwon et al. 2022): one scale per kept unit, by damped least squares.

For block after block, with the student's kept activations and b = (teacher's residual stream - student's incoming
stream - output bias), the scales s minimise ||A s - b||^2, column A_j being what unit j writes to the stream. The
publication's code solves x = LSMR(A'A, A'b - A'A 1, damp=1) and takes s = 1 + x. A'A = Q diag(l) Q' is symmetric, so
that is exactly x = Q diag(l / (l^2 + 1)) Q' (A'b - A'A 1), which is computed here, on the model's device. The scales
are folded into the weights.

Two defects of the published code are mended: a block whose solution is refused (a scale above 10, or not finite) is
reported and left alone while later blocks are still tuned; the teacher's budget is the caller's, made afresh.
As published, the first layer's attention is left alone, and attention has an intercept that is thrown away.
"""

from __future__ import annotations

import torch
from torch import nn

from pyprune import ops
from pyprune.core.anatomy import Anatomy, Block
from pyprune.core.batches import Batch
from pyprune.core.layers import matrix
from pyprune.core.stages import Stages
from pyprune.recovery.blockwise import Outcome, fit_blocks

# Kwon's bound on a scale; beyond it the solution has fitted noise.
_LARGEST_SCALE = 10.0


class _Scales:
    """Normal equations of one block's scales, and their solution."""

    def __init__(self, projection: nn.Module, block: Block) -> None:
        self.projection, self.units, self.name = projection, block.units, block.units.name
        self.intercept = block.units.axis != "neurons"
        self.dtype = torch.promote_types(projection.weight.dtype, torch.float32)
        self.w = matrix(projection).detach().to(self.dtype).T.contiguous()
        n = block.units.size + self.intercept
        device = projection.weight.device
        self.ata = torch.zeros(n, n, dtype=torch.float64, device=device)
        self.atb = torch.zeros(n, dtype=torch.float64, device=device)
        self.bb = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, x: torch.Tensor, target: torch.Tensor) -> None:
        size, width = self.units.size, self.units.width
        x, target = x.to(self.dtype), target.to(self.dtype)
        if self.projection.bias is not None:
            target = target - self.projection.bias.to(self.dtype)
        ata, atb = ops.hadamard_gram(x, self.w, target, group=width)
        self.ata[:size, :size] += ata
        self.atb[:size] += atb
        self.bb += target.square().sum(dtype=torch.float64)
        if self.intercept:
            # <A_j, 1> = sum over the unit's channels of colsum(x) * rowsum(w); <1, 1> = number of entries.
            ones = (x.sum(0, dtype=torch.float64) * self.w.sum(1, dtype=torch.float64)).view(size, width).sum(1)
            self.ata[size, :size] += ones
            self.ata[:size, size] += ones
            self.ata[size, size] += target.numel()
            self.atb[size] += target.sum(dtype=torch.float64)

    def solve(self) -> Outcome:
        size = self.units.size
        rhs = self.atb - self.ata.sum(1)
        if rhs.numel() == 1:  # as published: a single unknown is solved undamped
            x = rhs / self.ata[0, 0].clamp(min=torch.finfo(torch.float64).tiny)
        else:
            eigenvalues, q = torch.linalg.eigh(self.ata)
            x = q @ ((q.T @ rhs) * eigenvalues / (eigenvalues.square() + 1))
        scale = 1 + x[:size]
        if not torch.isfinite(scale).all() or scale.abs().max() > _LARGEST_SCALE:
            return Outcome(self.name, False, f"a scale of {scale.abs().max():.3g} exceeds {_LARGEST_SCALE:g}")
        before, after = self._missing(torch.ones_like(scale)), self._missing(scale)
        channels = scale.repeat_interleave(self.units.width).to(self.projection.weight.dtype)
        matrix(self.projection).mul_(channels)
        return Outcome(self.name, True, before=before, after=after)

    def _missing(self, scale: torch.Tensor) -> float:
        size = self.units.size
        left = scale @ self.ata[:size, :size] @ scale - 2 * scale @ self.atb[:size] + self.bb
        return float(left.clamp(min=0) / self.bb.clamp(min=torch.finfo(torch.float64).tiny))


def tune_masks(
    student: nn.Module,
    student_anatomy: Anatomy,
    teacher: nn.Module,
    teacher_anatomy: Anatomy,
    batches: list[Batch],
    stages: Stages | None = None,
) -> list[Outcome]:
    """Scale the kept units of the pruned `student` in place to follow `teacher`; returns what became of each block.

    The publication's teacher is the model pruned to the square root of the budget's share, before rearrangement.
    """
    first_layer = student_anatomy.layers[0]

    def start(projection: nn.Module, block: Block) -> _Scales | Outcome:
        if block.units.size == 0:
            return Outcome(block.units.name, False, "no units left")
        if block.layer_path == first_layer and block.units.axis != "neurons":
            return Outcome(block.units.name, False, "the first layer's attention is left alone, as published")
        return _Scales(projection, block)

    return fit_blocks(
        student, student_anatomy, teacher, teacher_anatomy, batches, start, stages or Stages(quiet=True), "mask tuning"
    )
