"""Masks of units as parameters: trained with a model's weights, or instead of them, and folded into them afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from pyprune.capture.masking import masked
from pyprune.core.anatomy import Anatomy, Block
from pyprune.core.units import Cut

_NAME = "unit_masks"


@contextmanager
def unit_masks(model: nn.Module, anatomy: Anatomy) -> Iterator[list[nn.Parameter]]:
    """Put a trainable mask of ones, fp32, on every unit whose output is scaled in one place; yields the masks.

    They are parameters of `model` meanwhile. When the block ends, also by an exception, they are gone, and their values
    are multiplied into the weights behind the units: the model computes the same, to rounding. Whole experts and
    dimensions of heads have none.
    """
    folded = {block.units.name: _cut(model, block) for block in anatomy.blocks if block.units.size}
    masks = {
        name: nn.Parameter(torch.ones(anatomy.block(name).units.size, device=tensor(model, cut).device))
        for name, cut in folded.items()
        if cut is not None
    }
    model.register_module(_NAME, nn.ParameterList(masks.values()))
    try:
        with masked(model, anatomy, masks):
            yield list(masks.values())
    finally:
        delattr(model, _NAME)
        for name, mask in masks.items():
            _fold(model, folded[name], mask.detach())


def tensor(model: nn.Module, cut: Cut) -> torch.Tensor:
    """The parameter that `cut` is of."""
    return model.get_parameter(cut.tensor)


def _cut(model: nn.Module, block: Block) -> Cut | None:
    """Where the masks of the block's units are folded: entries of its projection, one dimension of which they read."""
    if block.site == "tensor":
        names = (block.projection,)
    elif block.site in ("projection", "convolution"):
        names = (f"{block.projection}.weight",)
    else:
        return None
    found = [cut for cut in block.units.cuts if cut.tensor in names]
    return found[0] if len(found) == 1 else None


def _fold(model: nn.Module, cut: Cut, mask: torch.Tensor) -> None:
    weight = tensor(model, cut)
    factors = torch.ones(weight.shape[cut.dim], dtype=mask.dtype)
    factors[cut.positions(torch.arange(len(mask)))] = mask.cpu()[:, None]
    with torch.no_grad():
        weight.mul_(factors.to(weight.device).view(-1, *[1] * (weight.dim() - cut.dim - 1)))
