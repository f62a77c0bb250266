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


class _Keys(TorchFunctionMode):
    """While it lasts keys count otherwise: in torch's scaled dot-product attention, and where attention takes the
    softmax of scores `[B, heads, Q, T]` itself."""

    keys: int

    def masked(self, mask: torch.Tensor | None, query: torch.Tensor) -> torch.Tensor:
        """The mask of `query`'s attention in place of `mask`."""
        raise NotImplementedError

    def softmax(self, take: Callable[[torch.Tensor], torch.Tensor], scores: torch.Tensor) -> torch.Tensor:
        """What takes the place of `take(scores)`."""
        raise NotImplementedError

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is F.scaled_dot_product_attention:
            given = dict(zip(_ATTENTION, args, strict=False)) | kwargs
            return func(**{**given, "attn_mask": self.masked(given.get("attn_mask"), given["query"])})
        if func in _SOFTMAX and args and args[0].dim() == 4 and args[0].shape[-1] == self.keys:
            return self.softmax(lambda scores: func(scores, *args[1:], **kwargs), args[0])
        return func(*args, **kwargs)


class WithoutKeys(_Keys):
    """While it lasts no query attends to the keys whose entry of `kept`, `[T]` bool, is False."""

    def __init__(self, kept: torch.Tensor) -> None:
        super().__init__()
        self.kept, self.keys = kept, len(kept)

    def masked(self, mask: torch.Tensor | None, query: torch.Tensor) -> torch.Tensor:
        kept = self.kept.to(query.device).view(1, 1, 1, -1)
        if mask is None:
            return kept
        return mask & kept if mask.dtype == torch.bool else mask.masked_fill(~kept, -torch.inf)

    def softmax(self, take: Callable[[torch.Tensor], torch.Tensor], scores: torch.Tensor) -> torch.Tensor:
        # Of the scores that are left alone: some attentions round here to float32, and so round what a slice does.
        kept = self.kept.nonzero()[:, 0].to(scores.device)
        share = take(scores.index_select(-1, kept))
        return share.new_zeros(scores.shape).index_copy(-1, kept, share)


class WeightedKeys(_Keys):
    """While it lasts every key counts by its weight: the logarithms `[B, 1, 1, T]` of weights are added to scores.

    Weights of 1 and 0 are what `WithoutKeys` makes of keys that are kept and that are not.
    """

    def __init__(self, logarithms: torch.Tensor) -> None:
        super().__init__()
        self.logarithms, self.keys = logarithms, logarithms.shape[-1]

    def masked(self, mask: torch.Tensor | None, query: torch.Tensor) -> torch.Tensor:
        if mask is None:
            return self.logarithms
        return self.logarithms.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else mask + self.logarithms

    def softmax(self, take: Callable[[torch.Tensor], torch.Tensor], scores: torch.Tensor) -> torch.Tensor:
        return take(scores + self.logarithms)


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
