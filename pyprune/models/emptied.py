"""Attention that lost all its heads: no scores to compute, and still a place in the cache of a decoder's own keys; and
projections and experts of which only the bias, or nothing, is left."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn

from pyprune.core.layers import output_dim
from pyprune.models.narrow import widen_


def empty_attention_(attention: nn.Module, projection: str | None) -> None:
    """Turn an attention module without heads into an `EmptyAttention`, in place.

    `projection` names the output projection when it is part of `attention`, else the family applies it outside.
    """
    if not isinstance(attention, EmptyAttention):
        widen_(attention)
        attention.__class__ = _subclass(EmptyAttention, type(attention), projection)


def empty_experts_(experts: nn.Module) -> None:
    """Let the module of a layer's experts run without neurons, in place."""
    if not isinstance(experts, EmptyExperts):
        experts.__class__ = _subclass(EmptyExperts, type(experts), None)


def empty_projection_(projection: nn.Module) -> None:
    """Let a linear layer without inputs run, in place: `Linear` does, transformers' `Conv1D` does not."""
    if output_dim(projection) == 1 and not isinstance(projection, EmptyConv1D):
        projection.__class__ = _subclass(EmptyConv1D, type(projection), None)


class EmptyAttention(nn.Module):
    """Mixin over a family's attention class: the context has no channels, and the output is the projection's bias.

    Being a subclass keeps it recognisable for everything that looks attention up by its class, such as transformers'
    recorders of attention weights.
    """

    projection_path: str | None  # called like nothing that an attention module holds

    def forward(
        self,
        hidden_states: torch.Tensor,
        *args: Any,
        key_value_states: torch.Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple:
        """Output `[B, T, D]` (or context `[B, T, 0]`) and, in eager mode, attention weights `[B, 0, T, S]`.

        With `key_value_states` it is cross-attention, whose keys the cache is told once.
        """
        past_key_values = kwargs.get("layer_past", past_key_values)  # GPT-NeoX's name for it
        if past_key_values is None:  # GIT gives it no name
            past_key_values = next((a for a in args if hasattr(a, "get_seq_length")), None)
        batch, length, _ = hidden_states.shape
        seen = length
        source = kwargs.get("encoder_hidden_states")
        if source is not None:  # cross-attention: its part of the cache is read by nobody else, and stays empty
            seen = source.shape[1]
        elif key_value_states is not None:
            seen = key_value_states.shape[1]
            if hasattr(past_key_values, "is_updated") and not past_key_values.is_updated.get(self.layer_idx):
                _remember_length(past_key_values.cross_attention_cache, self.layer_idx, key_value_states)
                past_key_values.is_updated[self.layer_idx] = True
        elif past_key_values is not None:
            seen = _remember_length(past_key_values, self.layer_idx, hidden_states)
        config = getattr(self, "config", None)  # who has none computes its weights itself, and returns them
        eager = config is None or config._attn_implementation == "eager"
        weights = hidden_states.new_empty(batch, 0, length, seen) if eager else None
        output = hidden_states.new_empty(batch, length, 0)
        if self.projection_path:
            output = self.get_submodule(self.projection_path)(output)
        return output, weights

    def __reduce__(self) -> tuple:
        # The class is generated, so pickle and deepcopy rebuild it from the family's own class.
        return _rebuild, (EmptyAttention, type(self).__mro__[2], self.projection_path), self.__dict__


class EmptyConv1D(nn.Module):
    """Mixin over transformers' `Conv1D`, whose own forward cannot reshape inputs without channels."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The bias at every position: `[..., 0]` to `[..., nf]`."""
        return self.bias.expand(*x.shape[:-1], self.nf)

    def __reduce__(self) -> tuple:
        return _rebuild, (EmptyConv1D, type(self).__mro__[2], None), self.__dict__


def _remember_length(past_key_values: Any, layer_idx: int, hidden_states: torch.Tensor) -> int:
    """Let the cache count these tokens, and return how many keys it now holds.

    A cache layer without elements reports length 0, and layer 0 speaks for the whole cache. So one zero channel stands
    for the missing keys, unless the cache was allocated beforehand: then its own shape is used.
    """
    past_key_values = getattr(past_key_values, "self_attention_cache", past_key_values)
    layers = past_key_values.layers
    layer = layers[layer_idx] if layer_idx < len(layers) else None
    held = getattr(layer, "keys", None)
    heads, width = (1, 1) if held is None or held.dim() != 4 else (held.shape[1], held.shape[3])
    zeros = hidden_states.new_zeros(hidden_states.shape[0], heads, hidden_states.shape[1], width)
    keys, _ = past_key_values.update(zeros, zeros, layer_idx)
    return keys.shape[2]


class EmptyExperts(nn.Module):
    """Mixin over a family's experts, whose kernels for all experts at once ask for neurons."""

    def forward(self, hidden_states: torch.Tensor, *args: Any) -> torch.Tensor:
        """Zeros: experts have no biases."""
        return torch.zeros_like(hidden_states)

    def __reduce__(self) -> tuple:
        return _rebuild, (EmptyExperts, type(self).__mro__[2], None), self.__dict__


@cache
def _subclass(mixin: type[nn.Module], base: type[nn.Module], projection: str | None) -> type[nn.Module]:
    return type(f"Empty{base.__name__}", (mixin, base), {"projection_path": projection, "__module__": __name__})


def _rebuild(mixin: type[nn.Module], base: type[nn.Module], projection: str | None) -> nn.Module:
    emptied = _subclass(mixin, base, projection)
    return emptied.__new__(emptied)
