"""BLIP: a pre-norm image encoder, and post-norm text models whose cross-attention reads it."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from pyprune.core.anatomy import Block
from pyprune.models.attention import Attention
from pyprune.models.depth import Depth
from pyprune.models.families.bert import CROSS_ATTENTION, FEED_FORWARD, SELF_ATTENTION
from pyprune.models.family import Family, Stack
from pyprune.models.feed_forward import FeedForward
from pyprune.models.head_dims import head_dims
from pyprune.models.place import Place
from pyprune.models.tokens import Patches


class HeadCount(int):
    """A number of heads that knows the size of a head: what a width is divided by it for.

    BLIP's image encoder divides the width of the residual stream by the number of heads in every forward pass.

    >>> 768 // HeadCount(7, head_dim=64)
    64
    """

    head_dim: int

    def __new__(cls, count: int, head_dim: int) -> HeadCount:
        self = super().__new__(cls, count)
        self.head_dim = head_dim
        return self

    def __mul__(self, times: int) -> HeadCount:
        return HeadCount(int(self) * times, self.head_dim)

    def __rfloordiv__(self, width: int) -> int:
        return self.head_dim

    def __getnewargs__(self) -> tuple[int, int]:
        return int(self), self.head_dim


class _VisionAttention(Attention):
    """An attention that computes the size of its heads from their number."""

    def block(self, place: Place) -> Block:
        block = super().block(place)
        head_dim = place.layer.get_submodule(self.module).head_dim
        attributes = tuple(
            replace(attribute, per_unit=HeadCount(1, head_dim)) if attribute.name in self.counts else attribute
            for attribute in block.units.attributes
        )
        return replace(block, units=replace(block.units, attributes=attributes))


_VISION_ATTENTION = _VisionAttention(
    module="self_attn",
    fused="self_attn.qkv",
    output="self_attn.projection",
    counts=("num_heads",),
    widths=("embed_dim",),
    config_key="num_attention_heads",
    derives_head_dim=True,
)
_VISION = (
    _VISION_ATTENTION,
    *head_dims(_VISION_ATTENTION),
    FeedForward(inner=("mlp.fc1",), output="mlp.fc2", entry=("layer_norm2", "mlp"), config_key="intermediate_size"),
)
# Encoder and decoder of the question answering model are built from one config: it cannot count by layers.
_TEXT_ATTENTION = replace(SELF_ATTENTION, config_key="", derives_head_dim=False)
_TEXT = (
    _TEXT_ATTENTION,
    *head_dims(_TEXT_ATTENTION),
    CROSS_ATTENTION,
    *head_dims(CROSS_ATTENTION),
    replace(FEED_FORWARD, config_key=""),
)


_IMAGE = Patches(first=1, within=("blip",))


def _source_tokens(model: nn.Module, prefix: str) -> float | None:
    """The text model next to the image encoder reads the image; behind it the decoder of answers reads the question."""
    answers = hasattr(model, "text_encoder") and prefix == "text_decoder."
    return None if answers else _IMAGE.left(model.config.vision_config)


FAMILIES = (
    Family(model_types=("blip",), source_tokens=_source_tokens),
    Family(
        model_types=("blip_vision_model",),
        stacks=(Stack(layers="encoder.layers", parts=_VISION, patches=_IMAGE, depth=Depth("num_hidden_layers")),),
    ),
    Family(
        model_types=("blip_text_model",),
        stacks=(Stack(layers="encoder.layer", parts=_TEXT, depth=Depth("num_hidden_layers")),),
    ),
)
