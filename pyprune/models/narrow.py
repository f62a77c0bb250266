"""Attention whose queries and keys have another size than its values, whose positions lost some rotary pairs, or whose
key/value heads are not all read by as many query heads.

The families' own forwards read one `head_dim` for all three, and one number of readers. This one is written once for
those that attend as transformers' attention interface asks for: project, norm, rotate, remember, attend, project.
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
    """Names below the attention module; `output` is empty where the family applies it outside."""

    query: str = ""
    key: str = ""
    value: str = ""
    fused: str = ""
    output: str = ""


def narrow_(attention: nn.Module, projections: Projections) -> None:
    """Turn an attention module into a `NarrowAttention`, in place. It must know its `qk_dim`, `vo_dim` or `kv_map`."""
    if not isinstance(attention, NarrowAttention):
        attention.__class__ = _subclass(type(attention), projections)


def widen_(attention: nn.Module) -> None:
    """Give a `NarrowAttention` its family's class back."""
    if isinstance(attention, NarrowAttention):
        attention.__class__ = type(attention).__mro__[2]


class NarrowAttention(nn.Module):
    """Mixin over a family's attention class, which stays recognisable for whoever looks attention up by its class.

    `qk_dim` and `vo_dim` are the sizes of a head. `rotary_dims` `[qk_dim]`, a buffer that is saved with the weights,
    tells which dimensions of the dense head are left, if positions rotate them. The softmax scale is the dense head's.
    `kv_map` `[query heads]`, a buffer too, tells which key/value head each query head reads. Caches hold each of those
    once.
    """

    projections: Projections
    order: tuple[str, ...]  # names of the family's own positional arguments
    eager: Callable[..., Any]
    rotate: Callable[..., Any] | None

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, Any]:
        """Output `[B, T, D]` (or context `[B, T, heads * vo_dim]`) and, in eager mode, attention weights."""
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        kwargs |= dict(zip(self.order, args, strict=False))
        mask, positions = kwargs.pop("attention_mask", None), kwargs.pop("position_embeddings", None)
        past = kwargs.pop("past_key_values", None)
        shape = hidden_states.shape[:-1]
        query, key, value = (heads.transpose(1, 2) for heads in self._heads(hidden_states))
        if positions is not None and getattr(self, "use_rope", True):
            cos, sin = positions
            if (kept := getattr(self, "rotary_dims", None)) is not None:
                cos, sin = cos.index_select(-1, kept), sin.index_select(-1, kept)
            query, key = type(self).rotate(query, key, cos, sin)
        if past is not None:
            key, value = getattr(past, "self_attention_cache", past).update(key, value, self.layer_idx)
        if (readers := getattr(self, KV_MAP, None)) is not None:
            key, value = key.index_select(1, readers), value.index_select(1, readers)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, type(self).eager)
        context, weights = attend(
            self, query, key, value, mask, dropout=self._dropout(), scaling=self._scale(), **self._options(), **kwargs
        )
        context = context.reshape(*shape, -1).contiguous()
        if self.projections.output:
            context = self.get_submodule(self.projections.output)(context)
            context = self.out_drop(context) if hasattr(self, "out_drop") else context
        return context, weights

    def _heads(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries and keys `[B, T, heads, qk_dim]`, values `[B, T, heads, vo_dim]`."""
        names, shape = self.projections, hidden_states.shape[:-1]
        qk, vo = self._sizes()
        if names.fused:
            fused = self.get_submodule(names.fused)(hidden_states)
            if (readers := getattr(self, KV_MAP, None)) is not None:
                queries = len(readers)
                heads = (fused.shape[-1] - queries * qk) // (qk + vo)
            else:
                groups = getattr(self, "num_key_value_groups", 1)
                heads = fused.shape[-1] // (groups * qk + qk + vo)
                queries = heads * groups
            query, key, value = fused.split([queries * qk, heads * qk, heads * vo], -1)
        else:
            query, key, value = (self.get_submodule(n)(hidden_states) for n in (names.query, names.key, names.value))
        query, key = query.view(*shape, -1, qk), key.view(*shape, -1, qk)
        if hasattr(self, "q_norm"):
            query, key = self.q_norm(query), self.k_norm(key)
        return query, key, value.view(*shape, -1, vo)

    def _sizes(self) -> tuple[int, int]:
        head = getattr(self, "head_dim", None) or getattr(self, "attention_head_size", None)
        return getattr(self, "qk_dim", head), getattr(self, "vo_dim", head)

    def _scale(self) -> float:
        scale = getattr(self, "scaling", getattr(self, "scale", None))
        return self.head_dim**-0.5 if scale is None else scale

    def _dropout(self) -> float:
        rate = getattr(self, "attention_dropout", None)
        rate = getattr(self, "dropout", 0.0) if rate is None else rate
        return getattr(rate, "p", rate) if self.training else 0.0

    def _options(self) -> dict[str, Any]:
        """What only some kernels read."""
        options = {"sliding_window": getattr(self, "sliding_window", getattr(self.config, "sliding_window", None))}
        if hasattr(self, "deterministic_flash_attn"):
            options["deterministic"] = self.deterministic_flash_attn
        return options

    def __reduce__(self) -> tuple:
        # The class is generated, so pickle and deepcopy rebuild it from the family's own class.
        return _rebuild, (type(self).__mro__[2], self.projections), self.__dict__


@cache
def _subclass(base: type[nn.Module], projections: Projections) -> type[nn.Module]:
    family = sys.modules[base.__module__]
    names = {
        "projections": projections,
        "order": tuple(inspect.signature(base.forward).parameters)[2:],
        "eager": staticmethod(family.eager_attention_forward),
        "rotate": staticmethod(getattr(family, "apply_rotary_pos_emb", None)),
        "__module__": __name__,
    }
    return type(f"Narrow{base.__name__}", (NarrowAttention, base), names)


def _rebuild(base: type[nn.Module], projections: Projections) -> nn.Module:
    narrow = _subclass(base, projections)
    return narrow.__new__(narrow)
