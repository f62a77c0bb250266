"""What the channels of every projection's input carry: one forward pass, no gradients, no labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from pyprune.capture.collect import frozen
from pyprune.capture.curvature import GramSum
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
    totals = {g.name: ChannelTotals.zeros(g.size * g.width) for g in anatomy.groups}

    def see(name: str, x: torch.Tensor, batch: Batch) -> None:
        lengths = batch.mask(x.shape[1]).sum(1).cpu()
        totals[name].add(lengths, *channel_stats(x, None, batch.padding(x.shape[1])))

    _watch(model, anatomy, batches, see)
    for name, found in totals.items():
        _check(name, torch.stack([found.m2.sum(), found.energy.sum()]))
    return totals


@torch.no_grad()
def collect_grams(model: nn.Module, anatomy: Anatomy, batches: Iterable[Batch]) -> dict[str, torch.Tensor]:
    """Gram matrix X'X `[n, n]` float64 of every projection's inputs at the real tokens of `batches`.

    Raises NumericsError naming the group where an activation is NaN or Inf.
    """
    sums: dict[str, GramSum] = {}

    def see(name: str, x: torch.Tensor, batch: Batch) -> None:
        if name not in sums:
            sums[name] = GramSum(x.shape[-1], x.device)
        sums[name].add(batch.real(x).to(torch.promote_types(x.dtype, torch.float32)))

    _watch(model, anatomy, batches, see)
    grams = {name: found.total() for name, found in sums.items()}
    for name, gram in grams.items():
        _check(name, gram)
    return grams


def _watch(
    model: nn.Module, anatomy: Anatomy, batches: Iterable[Batch], see: Callable[[str, torch.Tensor, Batch], None]
) -> None:
    """Call `see(name, x, batch)` with the inputs `[B, T, n]` of every block's projection, batch after batch."""
    anatomy.need_projections("channel statistics")
    current: Batch | None = None
    reached = set()

    def watch(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            assert current is not None
            reached.add(name)
            see(name, by_sample(args[0], len(current.index)), current)

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
    need_reached((b.units.name for b in blocks), reached)


def _check(name: str, found: torch.Tensor) -> None:
    if not torch.isfinite(found).all():
        raise NumericsError(f"activations of {name} hold NaN or Inf; check the weights and the data")
