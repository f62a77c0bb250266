"""What the removal of a block's units costs, one after another: estimated by some criterion, then calibrated.

An estimate orders the units of one block. Between blocks estimates are not comparable, by a factor that differs from
block to block, and from the first units to the last. So the curve is *calibrated*: at a few points the cost of the
removal is measured on data (`capture.update_costs`), and the curve is scaled to pass through them. Its increments, made
non-decreasing, are scores that an additive search may compare across blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import isotonic_regression

# Shares of units that stay where the cost is measured: dense enough for a log-linear curve between them, above all at
# the last units of a block, which may cost more than all before them.
LEVELS = (0.8, 0.6, 0.45, 0.3, 0.15, 0.05, 0.0)
# The least estimate, as a share of the block's largest.
_LEAST = 1e-12


@dataclass
class CostCurve:
    """One block without its units.

    `order` `[size]` lists units, first to go first, and `cost` `[size]` what each one's going is estimated to cost.
    `updates` `[k, n, d]` are the changes of the output projection (transposed weights) after `removed[k]` units have
    gone.
    """

    order: torch.Tensor
    cost: torch.Tensor
    removed: list[int]
    updates: torch.Tensor


def removals(size: int) -> list[int]:
    """How many of so many units have gone where the cost is measured."""
    return sorted({size - int(level * size) for level in LEVELS} - {0})


def channels(units: torch.Tensor, width: int) -> torch.Tensor:
    """Those of `units`, of so many channels each."""
    return (units[:, None] * width + torch.arange(width, device=units.device)).flatten()


def removal(
    weight: torch.Tensor,
    scores: torch.Tensor,
    width: int,
    gram: torch.Tensor | None = None,
    damping: float = 1e-2,
) -> CostCurve:
    """The block whose units go in the order of their `scores` `[size]`, lowest first.

    `weight` `[d, n]` as `nn.Linear` holds it, `width` channels a unit. With the Gram matrix `gram` `[n, n]` of the
    block's inputs, the rows that stay are refitted to make up for those that go; `damping` is relative to its mean
    diagonal.
    """
    cost, order = scores.double().cpu().sort(stable=True)
    removed, rows = removals(len(order)), weight.detach().T.float()
    updates = torch.zeros(len(removed), *rows.shape, device=weight.device)
    if gram is not None:
        ridge = damping * gram.diagonal().mean().clamp(min=1e-12)
        gram = gram + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    for update, count in zip(updates, removed, strict=True):
        gone = channels(order[:count].to(weight.device), width)
        update[gone] = -rows[gone]
        if gram is not None and count < len(order):
            left = channels(order[count:].to(weight.device), width)
            kept = torch.linalg.cholesky(gram[left][:, left])
            update[left] = torch.cholesky_solve(gram[left][:, gone] @ rows[gone].double(), kept).float()
    return CostCurve(order, cost.clamp(min=0), removed, updates)


def calibrated(curve: CostCurve, measured: torch.Tensor) -> torch.Tensor:
    """Scores `[size]` float64 of a block's units, with the measured costs `[k]` of its updates."""
    # Units that are estimated to cost nothing share what they are measured to cost.
    estimated = (curve.cost + _LEAST * (float(curve.cost.max()) or 1.0)).cumsum(0).numpy()
    points = np.array(curve.removed)
    tiny = np.finfo(np.float64).tiny
    ratio = np.log(np.maximum(measured.cpu().numpy(), tiny)) - np.log(estimated[points - 1])
    scaled = estimated * np.exp(np.interp(np.arange(1, len(estimated) + 1), points, ratio))
    increments = np.diff(np.maximum.accumulate(scaled), prepend=0.0)
    rising = isotonic_regression(increments).x
    # Units of equal score go in the curve's order: a search takes the highest scores first.
    rising = rising * (1 + 1e-9 * np.arange(len(rising)))
    scores = torch.empty(len(rising), dtype=torch.float64)
    scores[curve.order] = torch.from_numpy(rising)
    return scores
