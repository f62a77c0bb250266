"""Masks at the inputs of output projections and convolutions, and on routed experts, while a `with` block lasts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from pyprune.core.anatomy import Anatomy, Block
from pyprune.core.errors import InputError
from pyprune.core.plan import Plan


@contextmanager
def masked(model: nn.Module, anatomy: Anatomy, masks: Plan | Mapping[str, torch.Tensor]) -> Iterator[nn.Module]:
    """Multiply each unit's channels by its mask while the context lasts; the weights stay as they are.

    `masks` is a plan (kept units 1, removed units 0) or a mapping from group names to `[size]` tensors of any real
    values; groups that are not named stay dense. An expert of mask 0 is not among those that the router chooses from.
    The hooks are gone afterwards, also after an exception. Raises MismatchError for a plan of another model, InputError
    for masks of unknown groups or other sizes.
    """
    if isinstance(masks, Plan):
        masks.check(anatomy)
        masks = {name: masks.mask(name) for name in masks.kept}
    groups = {g.name: g for g in anatomy.groups}
    for name, mask in masks.items():
        size = groups[name].size if name in groups else "no"
        if mask.shape != (size,):
            raise InputError(f"mask of {name}: {list(mask.shape)}, the model has {size} units")
        if int((mask != 0).sum()) < groups[name].least:
            raise InputError(f"mask of {name}: fewer than {groups[name].least} units are not 0")
    with ExitStack() as stack:
        for block in anatomy.blocks:
            if block.units.name in masks:
                _SITES[block.site](stack, model, block, masks[block.units.name])
        yield model


def _mask_input(stack: ExitStack, model: nn.Module, block: Block, mask: torch.Tensor) -> None:
    channels = mask.repeat_interleave(block.units.width)
    if block.site == "convolution":
        channels = channels[:, None, None]

    def multiply(_: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        x, *rest = args
        return (x * channels.to(device=x.device, dtype=x.dtype), *rest)

    stack.callback(model.get_submodule(block.projection).register_forward_pre_hook(multiply).remove)


def _mask_tensor(stack: ExitStack, model: nn.Module, block: Block, mask: torch.Tensor) -> None:
    path, _, name = block.projection.rpartition(".")
    (cut,) = (cut for cut in block.units.cuts if cut.tensor == block.projection)

    def multiplied(tensor: torch.Tensor) -> torch.Tensor:
        factors = mask.repeat_interleave(cut.width).to(tensor)
        return tensor * factors.view(-1, *[1] * (tensor.dim() - cut.dim - 1))

    _replace(stack, model.get_submodule(path), name, multiplied)


def _mask_router(stack: ExitStack, model: nn.Module, block: Block, mask: torch.Tensor) -> None:
    router = model.get_submodule(block.projection)
    kept = mask.nonzero()[:, 0]

    def among_all(_: nn.Module, args: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        logits, weights, indices = output
        chosen = kept.to(indices.device)[indices]
        return logits, weights * mask.to(weights)[chosen], chosen

    # Without their rows, and not with logits of -inf, the router computes what it does after the cut, to the last bit.
    _replace(stack, router, "weight", lambda rows: rows[kept.to(rows.device)])
    for attribute in block.units.attributes:
        if attribute.module == block.projection:
            stack.callback(setattr, router, attribute.name, getattr(router, attribute.name))
            setattr(router, attribute.name, attribute.value(len(kept)))
    stack.callback(router.register_forward_hook(among_all).remove)


def _replace(stack: ExitStack, module: nn.Module, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Let `module` run with a changed parameter. It is made anew each time, so that only one layer's is held."""
    own: list[torch.Tensor] = []

    def put(_: nn.Module, args: tuple[Any, ...]) -> None:
        own.append(module._parameters[name])
        module._parameters[name] = change(own[-1])

    def put_back(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if own:
            module._parameters[name] = own.pop()

    stack.callback(module.register_forward_pre_hook(put).remove)
    stack.callback(module.register_forward_hook(put_back, always_call=True).remove)


_SITES = {"projection": _mask_input, "convolution": _mask_input, "router": _mask_router, "tensor": _mask_tensor}
