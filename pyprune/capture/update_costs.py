"""What a change of a block's output projection does to a model's predictions, measured: forward passes, no gradients.

A quadratic form around the dense model says little of a block that goes as a whole, and nothing where the model is so
sure of its answers that their curvature vanishes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from pyprune.capture.collect import frozen
from pyprune.capture.divergence import Divergence
from pyprune.capture.outputs import run
from pyprune.capture.replay import SettledLayers
from pyprune.core.anatomy import Anatomy
from pyprune.core.batches import Batch
from pyprune.core.errors import NumericsError


@torch.no_grad()
def update_costs(
    model: nn.Module,
    anatomy: Anatomy,
    batches: Iterable[Batch],
    divergence: Divergence,
    updates: Mapping[str, torch.Tensor],
) -> dict[str, torch.Tensor]:
    """Divergence of `model` from itself under every weight change, each alone; sums over samples.

    `updates[name]` is `[k, n, d]`: k changes of that block's output projection (transposed weights). Returns `[k]`
    float64 a block, on the model's device. The layers in front of a block run once a batch.
    NumericsError where a prediction is not finite.
    """
    anatomy.need_projections("measured costs")
    device = next(model.parameters()).device
    costs = {name: torch.zeros(len(changes), dtype=torch.float64, device=device) for name, changes in updates.items()}
    with frozen(model):
        for batch in batches:
            moved = batch.on(model)
            divergence.dense = divergence.said(run(model, moved.inputs), moved)
            settled = SettledLayers(model, anatomy, lambda _: True)
            for index, block in enumerate(anatomy.blocks):
                name = block.units.name
                if name not in updates:
                    continue
                with settled.before(index):
                    for k, change in enumerate(updates[name]):
                        settled.enter(0)
                        with _changed(model.get_submodule(block.projection), change):
                            costs[name][k] += divergence(run(model, moved.inputs), moved)
    odd = [name for name, found in costs.items() if not torch.isfinite(found).all()]
    if odd:
        raise NumericsError(f"predictions hold NaN or Inf when {odd[0]} is changed; check the weights and the data")
    return costs


@contextmanager
def _changed(projection: nn.Module, change: torch.Tensor) -> Iterator[None]:
    """`projection` with `change` `[n, d]` added to its transposed weights, which are left as they are."""

    def add(_: nn.Module, args: tuple[torch.Tensor, ...], y: torch.Tensor) -> torch.Tensor:
        return y + args[0] @ change.to(y)

    handle = projection.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()
