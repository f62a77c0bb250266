"""Attention whose queries and keys have another size than its values, whose positions lost some rotary pairs, or whose
key/value heads are not all read by as many query heads.

The families' own forwards read one `head_dim` for all three, and one number of readers. This one is written once for
those that attend as transformers' attention interface asks for: project, norm, rotate, remember, attend, project. Those
that compute the same without the interface run through it too, in eager mode.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn

# Name of the buffer that tells which key/value head each query head reads.
KV_MAP = "kv_map"


@dataclass(frozen=True)
class Projections:
    """Names below the attention module; `output` is empty where the family applies it outside.

    `fused`, `interleaved` and `head_dim` are as in `attention.Attention`.
    """

    query: str = ""
    key: str = ""
    value: str = ""
    fused: str = ""
    interleaved: bool = False
    output: str = ""
    head_dim: str = "head_dim"


def narrow_(attention: nn.Module, projections: Projections) -> None:
    """Turn an attention module into a `NarrowAttention`, in place. It must know its `qk_dim`, `vo_dim` or `kv_map`."""
    if not isinstance(attention, NarrowAttention):
        attention.__class__ = narrow_class(type(attention), projections)


def widen_(attention: nn.Module) -> None:
    """Give a `NarrowAttention` its family's class back."""
    attention.__class__, _ = family_class(type(attention))


def family_class(attention_class: type[nn.Module]) -> tuple[type[nn.Module], Projections | None]:
    """The family's own class of an attention, and what made it a `narrow_class`; None where it is none."""
    if issubclass(attention_class, NarrowAttention):
        return attention_class.__bases__[-1], attention_class.projections
    return attention_class, None


class NarrowAttention(nn.Module):
    """Mixin over a family's attention class, which stays recognisable for whoever looks attention up by its class.

    `qk_dim` and `vo_dim` are the sizes of a head. `rotary_dims` `[qk_dim]`, a buffer that is saved with the weights,
    tells which dimensions of the dense head are left, if positions rotate them. The softmax scale is the dense head's.
    `kv_map` `[query heads]`, a buffer too, tells which key/value head each query head reads. Caches hold each of those
    once.
    """

    projections: Projections
    order: tuple[str, ...]  # names of the family's own positional arguments
    eager: Callable[..., Any] | None  # the family's own; None where it never asks the attention interface
    rotate: Callable[..., Any] | None

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, Any]:
        """Output `[B, T, D]` (or context `[B, T, heads * vo_dim]`) and, in eager mode, attention weights.

        Given another sequence it is cross-attention to that, whose keys and values the cache is told once.
        """
        kwargs |= dict(zip(self.order, args, strict=False))
        mask, positions, past, source = (_pop(kwargs, *names) for names in _ARGUMENTS)
        if source is not None and "encoder_attention_mask" in self.order:  # then it reads no other
            mask = kwargs.pop("encoder_attention_mask", None)
        told = {} if source is None else getattr(past, "is_updated", {})
        past = getattr(past, "self_attention_cache" if source is None else "cross_attention_cache", past)
        if told and told.get(self.layer_idx):
            query, _, _ = self._heads(hidden_states, None)
            key, value = past.layers[self.layer_idx].keys, past.layers[self.layer_idx].values
        else:
            query, key, value = self._heads(hidden_states, hidden_states if source is None else source)
            if positions is not None and getattr(self, "use_rope", True):
                cos, sin = positions
                if (kept := getattr(self, "rotary_dims", None)) is not None:
                    cos, sin = cos.index_select(-1, kept), sin.index_select(-1, kept)
                query, key = type(self).rotate(query, key, cos, sin)
            if past is not None:
                key, value = past.update(key, value, self.layer_idx)
            if source is not None:
                told[self.layer_idx] = True
        if isinstance(mask, torch.Tensor):  # Pix2Struct's may be wider
            mask = mask[..., : key.shape[-2]]
        context, weights = self._attend(query, key, value, mask, **kwargs)
        context = context.reshape(*hidden_states.shape[:-1], -1).contiguous()
        if self.projections.output:
            context = self.get_submodule(self.projections.output)(context)
            for name in ("out_drop", "resid_dropout"):
                context = getattr(self, name)(context) if hasattr(self, name) else context
        return context, weights

    def _attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, **kwargs: Any
    ) -> tuple[torch.Tensor, Any]:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        if (readers := getattr(self, KV_MAP, None)) is not None:
            key, value = key.index_select(1, readers), value.index_select(1, readers)
        attend = type(self).eager
        if attend is None or not hasattr(self, "config"):  # who has none cannot ask which kernel is wanted
            attend = _eager
        else:
            attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, attend)
            kwargs |= self._options()
        return attend(self, query, key, value, mask, dropout=self._dropout(), scaling=self._scale(), **kwargs)

    def _heads(self, hidden_states: torch.Tensor, states: torch.Tensor | None) -> tuple[Any, Any, Any]:
        """Queries and keys `[B, heads, T, qk_dim]`, values `[B, heads, T, vo_dim]`; queries alone if `states` is None.

        Keys and values are made from `states`, which are those of the queries if all three are fused.
        """
        names, (qk, vo) = self.projections, self._sizes()
        if not names.query:
            query, key, value = self._unfuse(hidden_states, getattr(self, "num_key_value_groups", 1) * qk, qk, vo)
        else:
            query = self.get_submodule(names.query)(hidden_states)
            if states is None:
                return self._as_heads(query, qk, "q_norm"), None, None
            if names.fused:
                key, value = self._unfuse(states, qk, vo)
            else:
                key, value = self.get_submodule(names.key)(states), self.get_submodule(names.value)(states)
        return self._as_heads(query, qk, "q_norm"), self._as_heads(key, qk, "k_norm"), self._as_heads(value, vo)

    def _unfuse(self, states: torch.Tensor, *widths: int) -> tuple[torch.Tensor, ...]:
        """What one projection holds for every key head: parts of these widths."""
        fused = self.get_submodule(self.projections.fused)(states)
        if (readers := getattr(self, KV_MAP, None)) is not None:
            queries = len(readers) * widths[0]
            heads = (fused.shape[-1] - queries) // sum(widths[1:])
            return fused.split([queries, *(heads * width for width in widths[1:])], -1)
        heads = fused.shape[-1] // sum(widths)
        if self.projections.interleaved:
            return fused.unflatten(-1, (heads, -1)).split(widths, -1)
        return fused.split([heads * width for width in widths], -1)

    def _as_heads(self, states: torch.Tensor, width: int, norm_name: str = "") -> torch.Tensor:
        """`[B, heads, T, width]`, after the norm of that name: one over each head, or over all together."""
        if (norm := getattr(self, norm_name, None)) is not None:
            states = norm(states.reshape(*states.shape[:2], -1, norm.weight.shape[0]))
        return states.reshape(*states.shape[:2], -1, width).transpose(1, 2)

    def _sizes(self) -> tuple[int, int]:
        head = getattr(self, self.projections.head_dim)
        return getattr(self, "qk_dim", head), getattr(self, "vo_dim", head)

    def _scale(self) -> float:
        scale = getattr(self, "scaling", getattr(self, "scale", None))
        return getattr(self, self.projections.head_dim) ** -0.5 if scale is None else scale

    def _dropout(self) -> float:
        names = ("attention_dropout", "attn_dropout", "dropout")
        rate = next((getattr(self, name) for name in names if hasattr(self, name)), 0.0)
        return getattr(rate, "p", rate) if self.training else 0.0

    def _options(self) -> dict[str, Any]:
        """What only some kernels read."""
        options = {"sliding_window": getattr(self, "sliding_window", getattr(self.config, "sliding_window", None))}
        if hasattr(self, "deterministic_flash_attn"):
            options["deterministic"] = self.deterministic_flash_attn
        return options

    def __reduce__(self) -> tuple:
        # The class is generated, so pickle and deepcopy rebuild it from the family's own class.
        return _rebuild, family_class(type(self)), self.__dict__


# Under whatever names families call them: mask, rotary positions, cache, and the sequence to attend to.
_ARGUMENTS = (
    ("attention_mask", "mask"),
    ("position_embeddings",),
    ("past_key_values", "layer_past"),
    ("key_value_states", "encoder_hidden_states"),
)


def _pop(kwargs: dict[str, Any], *names: str) -> Any:
    """The first of these arguments that is given; none of them stays."""
    given = [kwargs.pop(name, None) for name in names]
    return next((argument for argument in given if argument is not None), None)


def _eager(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    dropout: float,
    scaling: float,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Context `[B, T, heads, vo_dim]` and weights `[B, heads, T, S]`, as the interface returns them."""
    scores = query @ key.transpose(2, 3) * scaling
    weights = (scores if mask is None else scores + mask).softmax(-1)
    return (nn.functional.dropout(weights, dropout, module.training) @ value).transpose(1, 2), weights


@cache
def narrow_class(base: type[nn.Module], projections: Projections) -> type[nn.Module]:
    """The class of a family's attentions of class `base` that run as `NarrowAttention`."""
    family = sys.modules[base.__module__]
    names = {
        "projections": projections,
        "order": tuple(inspect.signature(base.forward).parameters)[2:],
        "eager": staticmethod(eager) if (eager := getattr(family, "eager_attention_forward", None)) else None,
        "rotate": staticmethod(getattr(family, "apply_rotary_pos_emb", None)),
        "__module__": __name__,
    }
    return type(f"Narrow{base.__name__}", (NarrowAttention, base), names)


def _rebuild(base: type[nn.Module], projections: Projections) -> nn.Module:
    narrow = narrow_class(base, projections)
    return narrow.__new__(narrow)
