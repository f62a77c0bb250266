"""GPT-2: a pre-norm decoder of `Conv1D` layers with one projection for queries, keys and values."""

from dataclasses import replace
from typing import Any

from torch import nn

from pyprune.models.attention import Attention
from pyprune.models.depth import Depth
from pyprune.models.family import Family, Stack
from pyprune.models.feed_forward import FeedForward
from pyprune.models.head_dims import head_dims


def _scaled_by_number(config: Any) -> str:
    return "its attention is scaled by the layer's number" if config.scale_attn_by_inverse_layer_idx else ""


def _plain(layer: nn.Module) -> bool:
    """Whether no option lets attention compute its scores in float32."""
    return not layer.attn.reorder_and_upcast_attn


def _plain_cross(layer: nn.Module) -> bool:
    return hasattr(layer, "crossattention") and _plain(layer)


_ATTENTION = Attention(
    module="attn",
    fused="attn.c_attn",
    output="attn.c_proj",
    counts=("num_heads",),
    widths=("split_size",),
    config_key="n_head",
    derives_head_dim=True,
)
_CROSS_ATTENTION = Attention(
    module="crossattention",
    query="crossattention.q_attn",
    fused="crossattention.c_attn",
    output="crossattention.c_proj",
    counts=("num_heads",),
    widths=("split_size",),
    cross=True,
    when=lambda layer: hasattr(layer, "crossattention"),
)

FAMILIES = (
    Family(
        model_types=("gpt2",),
        stacks=(
            Stack(
                layers="h",
                depth=Depth("n_layer", refuses=_scaled_by_number),
                parts=(
                    _ATTENTION,
                    *head_dims(replace(_ATTENTION, when=_plain)),
                    _CROSS_ATTENTION,
                    *head_dims(replace(_CROSS_ATTENTION, when=_plain_cross)),
                    FeedForward(
                        inner=("mlp.c_fc",),
                        output="mlp.c_proj",
                        entry=("ln_2", "mlp"),
                        config_key="n_inner",
                    ),
                ),
            ),
        ),
    ),
)
