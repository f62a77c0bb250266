"""What a unit is worth when the units that stay are refitted: structured optimal brain surgeon.

For one block with output projection W `[n, d]`, inputs with Gram matrix G and output metric M (`capture.curvature`),
the loss of a weight change D is about tr(D' G D M). With H = (G + damping)^-1, removing unit u (rows of W) and
refitting the rows that stay costs, and changes W and H by,

    cost_u = tr(W_u' (H_uu)^-1 W_u M),   W <- W - H_:u (H_uu)^-1 W_u,   H <- H - H_:u (H_uu)^-1 H_u:

(Hassibi and Stork 1993; for structures Kurtic et al. 2023, "ZipLM"; the metric is the K-FAC factor of Martens and
Grosse 2015). The cheapest units go first, which orders them and gives a curve of costs a block.

The Kronecker form ignores that errors of one sample's tokens add up, by a factor that differs from block to block, and
that what is far from the dense model costs more than a quadratic form says: the curves are calibrated
(`importance.cost_curve`).
"""

from __future__ import annotations

import torch

from pyprune.importance.cost_curve import CostCurve, channels, removals

# Neurons removed between two updates of H, as a share: 8 of 1,536. A step's joint cost is exact, its choice is not.
_STEP = 1 / 192
# Relative to the mean diagonal; keeps the metric definite.
_METRIC_DAMPING = 1e-3
# Removed neurons keep their rows, updated in place with the others, until this share is left: copying costs more.
_COMPACT_BELOW = 0.75


def eliminate(
    weight: torch.Tensor, gram: torch.Tensor, metric: torch.Tensor, width: int, damping: float = 1e-2
) -> CostCurve:
    """The block taken apart unit by unit, refit included.

    `weight` `[d, n]` as `nn.Linear` holds it, `gram` `[n, n]`, `metric` `[d, d]`, `width` channels a unit. Float64
    inside.
    """
    dense = weight.detach().double().T
    n, size = dense.shape[0], dense.shape[0] // width
    eye = torch.eye(n, dtype=torch.float64, device=dense.device)
    h = torch.linalg.inv(gram + damping * gram.diagonal().mean().clamp(min=1e-12) * eye)
    root = _root(metric)
    w = dense @ root
    units = torch.arange(size, device=dense.device)  # what the rows of w and h stand for, as units are removed
    order, cost, removed, updates = [], [], [], []
    levels = removals(size)
    step = max(1, round(size * _STEP)) if width == 1 else 1
    alive = torch.ones(size, dtype=torch.bool, device=dense.device)
    while len(order) < size:
        here = min(step, levels[0] - len(order))
        gone = _unit_costs(w, h, alive, width).topk(here, largest=False, sorted=True).indices
        rows = channels(gone, width)
        block = h[rows][:, rows]
        solved = torch.linalg.solve(block, w[rows])
        order += units[gone].tolist()
        cost += (w[rows] * solved).sum(1).view(here, width).sum(1).clamp(min=0).tolist()
        cross = h[:, rows].contiguous()
        w.addmm_(cross, solved, alpha=-1)
        h.addmm_(cross, torch.linalg.solve(block, cross.T), alpha=-1)
        alive[gone] = False
        if int(alive.sum()) < _COMPACT_BELOW * len(alive) or width > 1:
            left = channels(alive.nonzero().flatten(), width)
            w, h = w[left], h[left][:, left].contiguous()
            units, alive = units[alive], alive[alive]
        if len(order) == levels[0]:
            levels.pop(0)
            after = torch.zeros_like(dense)
            left = alive.nonzero().flatten()
            after[channels(units[left], width)] = torch.linalg.solve_triangular(
                root, w[channels(left, width)], upper=False, left=False
            )
            removed.append(len(order))
            updates.append((after - dense).float())
    return CostCurve(torch.tensor(order), torch.tensor(cost, dtype=torch.float64), removed, torch.stack(updates))


def _root(metric: torch.Tensor) -> torch.Tensor:
    eye = torch.eye(len(metric), dtype=torch.float64, device=metric.device)
    scale = metric.diagonal().mean().clamp(min=torch.finfo(torch.float64).tiny)
    return torch.linalg.cholesky(metric / scale + _METRIC_DAMPING * eye) * scale.sqrt()


def _unit_costs(w: torch.Tensor, h: torch.Tensor, alive: torch.Tensor, width: int) -> torch.Tensor:
    if width == 1:
        return torch.where(alive, w.square().sum(1) / h.diagonal(), torch.inf)
    at = torch.arange(len(alive), device=w.device)
    blocks = h.view(len(alive), width, len(alive), width)[at, :, at, :]
    rows = w.view(len(alive), width, -1)
    return (rows * torch.linalg.solve(blocks, rows)).sum((1, 2))
