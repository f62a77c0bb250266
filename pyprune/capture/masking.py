"""Masks at the inputs of the output projections, for as long as a `with` block lasts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from pyprune.core.anatomy import Anatomy
from pyprune.core.errors import InputError
from pyprune.core.plan import Plan


@contextmanager
def masked(model: nn.Module, anatomy: Anatomy, masks: Plan | Mapping[str, torch.Tensor]) -> Iterator[nn.Module]:
    """Multiply each unit's channels by its mask while the context lasts; the weights stay as they are.

    `masks` is a plan (kept units 1, removed units 0) or a mapping from group names to `[size]` tensors of any real
    values; groups that are not named stay dense. The hooks are gone afterwards, also after an exception.
    Raises MismatchError for a plan of another model, InputError for masks of unknown groups or other sizes.
    """
    if isinstance(masks, Plan):
        masks.check(anatomy)
        masks = {name: masks.mask(name) for name in masks.kept}
    sizes = {g.name: g.size for g in anatomy.groups}
    for name, mask in masks.items():
        if mask.shape != (sizes.get(name),):
            raise InputError(f"mask of {name}: {list(mask.shape)}, the model has {sizes.get(name, 'no')} units")
    handles = []
    try:
        for block in anatomy.blocks:
            if block.units.name in masks:
                channels = masks[block.units.name].repeat_interleave(block.units.width)
                handles.append(_mask_input(model.get_submodule(block.projection), channels))
        yield model
    finally:
        for handle in handles:
            handle.remove()


def _mask_input(projection: nn.Module, channels: torch.Tensor) -> torch.utils.hooks.RemovableHandle:
    def multiply(_: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        x, *rest = args
        return (x * channels.to(device=x.device, dtype=x.dtype), *rest)

    return projection.register_forward_pre_hook(multiply)
