"""Second-order statistics of output projections.

With x the input and g the gradient at the output of a projection (one row a token), the loss of changing its weights by
D `[n, d]` is 1/2 (sum over tokens of x' D g)^2 per sample, to second order (Gauss-Newton). `collect_curvature` gathers
the two factors of its Kronecker approximation.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from pyprune.capture.collect import backward_passes
from pyprune.capture.cotangent import Cotangent
from pyprune.capture.taps import need_reached, output_taps
from pyprune.core.anatomy import Anatomy
from pyprune.core.batches import Batch
from pyprune.core.errors import NumericsError
from pyprune.core.layers import matrix


@dataclass
class Curvature:
    """Kronecker factors of one block's output projection, sums over real tokens, float64.

    `metric` `[d, d]` is the sum of g g' over tokens and draws. `gram` `[n, n]` is the mean of x x' in which a token
    counts by its |g|^2: tokens that nobody reads (all but the first in the last layer of a classifier) do not count.
    """

    gram: torch.Tensor
    metric: torch.Tensor


class GramSum:
    """Sum of r r' over rows r, float64.

    Rows wait for some thousands of them: adding up a Gram matrix of 1,536 channels costs more than computing it from a
    batch of a few hundred tokens.
    """

    _AT_LEAST = 4096

    def __init__(self, width: int, device: torch.device) -> None:
        self.sum = torch.zeros(width, width, dtype=torch.float64, device=device)
        self.rows: list[torch.Tensor] = []
        self.count = 0

    def add(self, rows: torch.Tensor) -> None:
        """Take in `rows` `[N, width]`."""
        self.rows.append(rows)
        self.count += len(rows)
        if self.count >= self._AT_LEAST:
            self.total()

    def total(self) -> torch.Tensor:
        """The sum over all rows so far, `[width, width]`."""
        if self.rows:
            rows = torch.cat(self.rows)
            self.sum += rows.T @ rows
            self.rows, self.count = [], 0
        return self.sum


def collect_curvature(
    model: nn.Module, anatomy: Anatomy, batches: Iterable[Batch], cotangent: Cotangent, draws: int
) -> dict[str, Curvature]:
    """Kronecker factors of every block that has units; one pass over `batches`, `draws` backward passes each."""
    anatomy.need_projections("curvature")
    blocks = [block for block in anatomy.blocks if block.units.size]
    projections = [(block.units.name, block.projection) for block in blocks]
    grams, metrics = {}, {}
    for block in blocks:
        projection = model.get_submodule(block.projection)
        device = projection.weight.device
        grams[block.units.name] = GramSum(matrix(projection).shape[1], device)
        metrics[block.units.name] = GramSum(matrix(projection).shape[0], device)
    pending: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    weight: dict[str, torch.Tensor] = {}
    with output_taps(model, projections, lambda name, x, dy: pending.__setitem__(name, (x, dy))):
        for batch, draw, scale in backward_passes(model, batches, cotangent, draws):
            need_reached(grams, pending)
            for name, (x, dy) in pending.items():
                g = batch.real(dy).float() / scale
                metrics[name].add(g)
                weight[name] = g.square().sum(1) + (weight[name] if draw else 0)
                if draw == draws - 1:  # the inputs are the same for all draws of a batch
                    grams[name].add(batch.real(x).float() * weight[name].sqrt()[:, None])
            pending.clear()
    found = {name: Curvature(grams[name].total(), metrics[name].total()) for name in grams}
    for name, curvature in found.items():
        curvature.gram /= curvature.metric.trace().clamp(min=torch.finfo(torch.float64).tiny)
        if not (torch.isfinite(curvature.gram).all() and torch.isfinite(curvature.metric).all()):
            raise NumericsError(f"statistics of {name} hold NaN or Inf; check the weights and the data")
    return found
