"""Masks of units as parameters: trained with a model's weights, or instead of them, and folded into them afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from pyprune import ops
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
    cuts = {block.units.name: _cut(block) for block in anatomy.blocks if block.units.size}
    cuts = {name: cut for name, cut in cuts.items() if cut is not None}
    masks = {
        name: nn.Parameter(torch.ones(anatomy.block(name).units.size, device=model.get_parameter(cut.tensor).device))
        for name, cut in cuts.items()
    }
    model.register_module(_NAME, nn.ParameterList(masks.values()))
    try:
        with ExitStack() as stack:
            weights = {}
            for name, mask in masks.items():
                block = anatomy.block(name)
                if block.site == "tensor":
                    weights[name] = mask
                else:
                    projection = model.get_submodule(block.projection)
                    stack.callback(projection.register_forward_pre_hook(_scaling(block, mask)).remove)
            stack.enter_context(masked(model, anatomy, weights))
            yield list(masks.values())
    finally:
        delattr(model, _NAME)
        with torch.no_grad():
            for name, mask in masks.items():
                weight = model.get_parameter(cuts[name].tensor)
                weight.mul_(cuts[name].factors(mask, weight))


class _Scaled(torch.autograd.Function):
    """`x` `[..., size * width]` times the unit's mask, whose gradient is a sum over tokens that writes no product."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, mask: torch.Tensor, width: int) -> torch.Tensor:
        ctx.save_for_backward(x, mask)
        ctx.width = width
        return x * mask.repeat_interleave(width).to(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, mask = ctx.saved_tensors
        dx = dy * mask.repeat_interleave(ctx.width).to(dy) if ctx.needs_input_grad[0] else None
        rows = (x.shape[0], x.shape[1:-1].numel(), x.shape[-1])
        dmask = ops.prod_reduce(x.reshape(rows), dy.to(x.dtype).reshape(rows), group=ctx.width)
        return dx, dmask.sum(0).to(mask), None


def _scaling(block: Block, mask: nn.Parameter) -> Any:
    """A hook that multiplies a projection's input, or the channels of a convolution's, by what the mask is then."""

    def scale(_: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        x, *rest = args
        if block.site == "convolution":
            return (x * mask.repeat_interleave(block.units.width)[:, None, None].to(x), *rest)
        return (_Scaled.apply(x, mask, block.units.width), *rest)

    return scale


def _cut(block: Block) -> Cut | None:
    """Where the masks of the block's units are folded: entries of its projection, one dimension of which they read."""
    names = {"tensor": block.projection, "projection": f"{block.projection}.weight"}
    names["convolution"] = names["projection"]
    found = [cut for cut in block.units.cuts if cut.tensor == names.get(block.site)]
    return found[0] if len(found) == 1 else None
