"""What the channels of every projection's input carry: one forward pass, no gradients, no labels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from pyprune.capture.collect import frozen
from pyprune.capture.outputs import body, repeatable
from pyprune.capture.taps import by_sample, need_reached
from pyprune.core.anatomy import Anatomy
from pyprune.core.batches import Batch
from pyprune.core.errors import NumericsError
from pyprune.core.statistics import ChannelTotals
from pyprune.ops import channel_stats


@torch.no_grad()
def collect_channels(model: nn.Module, anatomy: Anatomy, batches: Iterable[Batch]) -> dict[str, ChannelTotals]:
    """Totals of the channels of every group over the real tokens of `batches`; padding is not counted.

    Raises NumericsError naming the group where an activation is NaN or Inf.
    """
    anatomy.need_projections("channel statistics")
    totals = {g.name: ChannelTotals.zeros(g.size * g.width) for g in anatomy.groups}
    current: Batch | None = None

    def watch(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            assert current is not None
            x = by_sample(args[0], len(current.index))
            lengths = current.mask(x.shape[1]).sum(1).cpu()
            totals[name].add(lengths, *channel_stats(x, None, current.padding(x.shape[1])))

        return hook

    blocks = [block for block in anatomy.blocks if block.units.size]
    handles = [
        model.get_submodule(block.projection).register_forward_pre_hook(watch(block.units.name)) for block in blocks
    ]
    try:
        with frozen(model):
            for batch in batches:
                current = batch.on(model)
                with repeatable():
                    body(model)(**current.inputs)
    finally:
        for handle in handles:
            handle.remove()
    need_reached((b.units.name for b in blocks), {name for name, found in totals.items() if found.count})
    for name, found in totals.items():
        if not (torch.isfinite(found.m2).all() and torch.isfinite(found.energy).all()):
            raise NumericsError(f"activations of {name} hold NaN or Inf; check the weights and the data")
    return totals
