"""Tokens that are masked: no attention sees them, and what reads the last layer does not get them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from pyprune.core.anatomy import Anatomy, TokenGroup
from pyprune.core.errors import InputError
from pyprune.core.units import group_kind

_SOFTMAX = (F.softmax, torch.softmax, torch.Tensor.softmax)
_ATTENTION = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")


class WithoutKeys(TorchFunctionMode):
    """While it lasts no query attends to the keys whose entry of `kept`, `[T]` bool, is False.

    Sees torch's scaled dot-product attention, and attention that takes the softmax of scores `[B, heads, Q, T]` itself.
    """

    def __init__(self, kept: torch.Tensor) -> None:
        super().__init__()
        self.kept = kept

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is F.scaled_dot_product_attention:
            given = dict(zip(_ATTENTION, args, strict=False)) | kwargs
            kept = self.kept.to(given["query"].device).view(1, 1, 1, -1)
            mask = given.get("attn_mask")
            if mask is None:
                given["attn_mask"] = kept
            else:
                given["attn_mask"] = mask & kept if mask.dtype == torch.bool else mask.masked_fill(~kept, -torch.inf)
            return func(**given)
        if func in _SOFTMAX and args and args[0].dim() == 4 and args[0].shape[-1] == len(self.kept):
            # Of the scores that are left alone: some attentions round here to float32, and so round what a slice does.
            kept = self.kept.nonzero()[:, 0].to(args[0].device)
            share = func(args[0].index_select(-1, kept), *args[1:], **kwargs)
            return share.new_zeros(args[0].shape).index_copy(-1, kept, share)
        return func(*args, **kwargs)


class WeightedKeys(TorchFunctionMode):
    """While it lasts every key counts by its weight: the logarithms `[B, 1, 1, T]` of weights are added to scores.

    Sees what `WithoutKeys` sees, which is the same for weights of 1 and 0.
    """

    def __init__(self, logarithms: torch.Tensor) -> None:
        super().__init__()
        self.logarithms = logarithms

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is F.scaled_dot_product_attention:
            given = dict(zip(_ATTENTION, args, strict=False)) | kwargs
            mask = given.get("attn_mask")
            if mask is None:
                given["attn_mask"] = self.logarithms
            elif mask.dtype == torch.bool:
                given["attn_mask"] = self.logarithms.masked_fill(~mask, -torch.inf)
            else:
                given["attn_mask"] = mask + self.logarithms
            return func(**given)
        if func in _SOFTMAX and args and args[0].dim() == 4 and args[0].shape[-1] == self.logarithms.shape[-1]:
            return func(args[0] + self.logarithms, *args[1:], **kwargs)
        return func(*args, **kwargs)


def mask_tokens(stack: ExitStack, model: nn.Module, anatomy: Anatomy, masks: Mapping[str, torch.Tensor]) -> None:
    """Hide the tokens whose mask is 0, each from its layer on; the last layer of a stack hands on the others alone.

    Layers of mask 0 hide nothing.
    """
    kept_layers = {
        g.units.name: masks[g.units.name].cpu().nonzero()[:, 0] for g in anatomy.layer_groups if g.units.name in masks
    }
    absent = anatomy.lost_layers(kept_layers)
    left: dict[str, tuple[TokenGroup, torch.Tensor]] = {}
    gone: dict[str, set[int]] = {}
    for group in anatomy.token_groups:
        mask = masks.get(group.units.name, torch.ones(group.units.size))
        if not bool(((mask == 0) | (mask == 1)).all()):
            raise InputError(f"mask of {group.units.name}: every token must be 0 or 1, since attention counts them")
        if group.layer in absent:
            continue
        lost = gone.setdefault(group_kind(group.units), set())
        lost |= {position for position, m in zip(group.positions, mask.tolist(), strict=True) if not m}
        kept = torch.tensor([True] * group.first + [position not in lost for position in group.positions])
        if lost:
            _hide(stack, model.get_submodule(group.layer), kept)
        left[group_kind(group.units)] = group, kept
    for group, kept in left.values():
        if not bool(kept.all()):
            _drop_behind(stack, model.get_submodule(group.layer), kept.nonzero()[:, 0])


def _hide(stack: ExitStack, layer: Any, kept: torch.Tensor) -> None:
    forward = layer.forward

    def without_keys(*args: Any, **kwargs: Any) -> Any:
        with WithoutKeys(kept):
            return forward(*args, **kwargs)

    stack.enter_context(forward_replaced(layer, without_keys))


def _drop_behind(stack: ExitStack, layer: nn.Module, kept: torch.Tensor) -> None:
    def drop(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        hidden = output if isinstance(output, torch.Tensor) else output[0]
        hidden = hidden.index_select(1, kept.to(hidden.device))
        return hidden if isinstance(output, torch.Tensor) else (hidden, *output[1:])

    stack.callback(layer.register_forward_hook(drop).remove)


@contextmanager
def forward_replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let `module` run another forward while the context lasts."""
    own = vars(module).get("forward")  # libraries that move weights between devices put one on the instance
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own
