"""T5 and the decoder of Pix2Struct: heads that read a position bias which layer 0 makes for all layers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn

from pyprune.core.units import HEAD_DIM_AXES
from pyprune.models.attention import Attention
from pyprune.models.depth import Depth
from pyprune.models.emptied import EmptyAttention
from pyprune.models.family import Family, Part, Stack
from pyprune.models.feed_forward import FeedForward
from pyprune.models.head_dims import HeadDims
from pyprune.models.narrow import Projections, family_class, narrow_class
from pyprune.models.place import Place


class SharedBiasAttention(nn.Module):
    """Mixin over the attention of a layer that lost heads: of the shared bias it reads the rows of its own heads.

    Layer 0 makes the bias of all heads, its own and those that only other layers keep, so its table is never cut. The
    kept heads are a buffer, which a checkpoint of a pruned model holds and one of a dense model does not. The zeros
    that cross-attention takes for a bias are made anew in every layer, and those of others are passed on.
    """

    kept_heads: torch.Tensor

    def forward(
        self,
        hidden_states: torch.Tensor,
        mask: Any = None,
        key_value_states: torch.Tensor | None = None,
        position_bias: torch.Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Output `[B, T, D]`, the bias for the next layers and, in eager mode, attention weights `[B, heads, T, S]`."""
        own = None
        if key_value_states is None:
            if position_bias is None:
                position_bias = self._bias_of_all_heads(hidden_states, past_key_values)
            own = position_bias[:, self.kept_heads]
        output, *_, weights = super().forward(
            hidden_states,
            mask=mask,
            key_value_states=key_value_states,
            position_bias=own,
            past_key_values=past_key_values,
            **kwargs,
        )
        return output, position_bias, weights

    def _bias_of_all_heads(self, hidden_states: torch.Tensor, past_key_values: Any) -> torch.Tensor:
        length = keys = hidden_states.shape[1]
        seen = 0
        if past_key_values is not None:
            seen = past_key_values.get_seq_length(self.layer_idx)
            keys, _ = past_key_values.get_mask_sizes(length, self.layer_idx)
        return self.compute_bias(length, keys, device=hidden_states.device, past_seen_tokens=seen)

    def __reduce__(self) -> tuple:
        # The class is generated, so pickle and deepcopy rebuild it from the family's own class.
        own, projections = family_class(_class_below(self))
        return _rebuild, (own, projections, getattr(self, "projection_path", None)), self.__dict__


@dataclass(frozen=True)
class SharedBias(Attention):
    """`Attention` whose heads read a position bias that is shared by all layers, or zeros if it is cross-attention."""

    def cut(self, place: Place, kept: torch.Tensor) -> None:
        """Remember which heads stay, in terms of those of layer 0's table."""
        module = place.layer.get_submodule(self.module)
        if not isinstance(module, SharedBiasAttention):
            module.__class__ = _sharing_bias(type(module), None)
        if not self.cross:
            heads = kept.to(place.layer.get_submodule(self.output).weight.device)
            if hasattr(module, "kept_heads"):
                heads = module.kept_heads[heads]
            module.register_buffer("kept_heads", heads)

    def emptied(self, place: Place) -> None:
        """Leave out the attention, and still make the bias of the other layers."""
        module = place.layer.get_submodule(self.module)
        own, _ = family_class(_class_below(module))
        module.__class__ = _sharing_bias(own, self.output.removeprefix(f"{self.module}."))


@dataclass(frozen=True)
class SharedBiasHeadDims(HeadDims):
    """`HeadDims` of an attention whose heads, all or some, read a shared position bias."""

    def cut(self, place: Place, kept: torch.Tensor) -> None:
        """Let the attention run with heads of two sizes, below what gives its heads their bias."""
        module = place.layer.get_submodule(self.attention.module)
        if isinstance(module, EmptyAttention):
            return
        module.__class__ = _class_below(module)
        super().cut(place, kept)
        self.attention.cut(place, torch.arange(module.n_heads))


@cache
def _sharing_bias(attention_class: type[nn.Module], projection: str | None) -> type[nn.Module]:
    """The class of attentions that lost heads; of those that lost all, if the output projection is named."""
    if projection is None:  # over a `NarrowAttention` too, which leaves the bias to whoever calls it
        return type(f"Cut{attention_class.__name__}", (SharedBiasAttention, attention_class), {"__module__": __name__})
    bases = (SharedBiasAttention, EmptyAttention, attention_class)
    return type(f"Empty{attention_class.__name__}", bases, {"__module__": __name__, "projection_path": projection})


def _class_below(attention: nn.Module) -> type[nn.Module]:
    """The class of an attention without what gives its heads their bias: the family's own, or one of narrow heads."""
    return type(attention).__bases__[-1] if isinstance(attention, SharedBiasAttention) else type(attention)


def _rebuild(attention_class: type[nn.Module], projections: Projections | None, projection: str | None) -> nn.Module:
    below = attention_class if projections is None else narrow_class(attention_class, projections)
    rebuilt = _sharing_bias(below, projection)
    return rebuilt.__new__(rebuilt)


def _attention(module: str, cross: bool = False) -> SharedBias:
    # One config speaks for both stacks and for cross-attention too, so the widths are recorded under the groups' names.
    return SharedBias(
        module=module,
        query=f"{module}.q",
        key=f"{module}.k",
        value=f"{module}.v",
        output=f"{module}.o",
        head_dim="key_value_proj_dim",
        counts=("n_heads",),
        widths=("inner_dim",),
        cross=cross,
        exit=None,
    )


def with_head_dims(attention: SharedBias) -> tuple[Part, ...]:
    """The attention and the dimensions of its heads."""
    return attention, *(SharedBiasHeadDims(attention, axis) for axis in HEAD_DIM_AXES)


def _feed_forward(layer: str) -> FeedForward:
    dense = f"{layer}.DenseReluDense"
    return FeedForward(
        inner=(f"{dense}.wi", f"{dense}.wi_0", f"{dense}.wi_1"),
        output=f"{dense}.wo",
        entry=(f"{layer}.layer_norm", dense),
        exit=None,
        native_key="d_ff",
    )


FAMILIES = (
    Family(
        model_types=("t5",),
        stacks=(
            Stack(
                "encoder.block",
                (*with_head_dims(_attention("layer.0.SelfAttention")), _feed_forward("layer.1")),
                name="encoder",
                depth=Depth("num_layers", own_key="num_layers", first=1),
            ),
            Stack(
                "decoder.block",
                (
                    *with_head_dims(_attention("layer.0.SelfAttention")),
                    *with_head_dims(_attention("layer.1.EncDecAttention", cross=True)),
                    _feed_forward("layer.2"),
                ),
                name="decoder",
                depth=Depth("num_decoder_layers", own_key="num_layers", first=1),
            ),
        ),
        refused=(("is_decoder", True, "its encoder has the layers of a decoder"),),
    ),
)
