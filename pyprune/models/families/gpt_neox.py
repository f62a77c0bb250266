"""GPT-NeoX and Pythia: rotary decoders whose fused projection holds query, key and value head by head."""

from dataclasses import replace

from torch import nn

from pyprune.models.attention import Attention
from pyprune.models.depth import Depth
from pyprune.models.family import Family, Stack
from pyprune.models.feed_forward import FeedForward
from pyprune.models.head_dims import head_dims


def _parallel(layer: nn.Module) -> bool:
    """Whether attention and feed-forward both read what enters the layer."""
    return layer.use_parallel_residual


def _sequential(layer: nn.Module) -> bool:
    return not layer.use_parallel_residual


# No key: the family's config refuses head counts that do not divide the hidden size, and would in every layer.
_ATTENTION = Attention(
    module="attention",
    fused="attention.query_key_value",
    interleaved=True,
    output="attention.dense",
    head_dim="head_size",
)
_HEAD_DIMS = head_dims(_ATTENTION, rotary=True, partial=True)
_FEED_FORWARD = {
    "inner": ("mlp.dense_h_to_4h",),
    "output": "mlp.dense_4h_to_h",
    "entry": ("post_attention_layernorm", "mlp"),
    "config_key": "intermediate_size",
}

FAMILIES = (
    Family(
        model_types=("gpt_neox",),
        stacks=(
            Stack(
                layers="layers",
                depth=Depth("num_hidden_layers"),
                parts=(
                    replace(_ATTENTION, exit=None, when=_parallel),
                    replace(_ATTENTION, when=_sequential),
                    *_HEAD_DIMS,
                    FeedForward(**_FEED_FORWARD, exit=None, when=_parallel),
                    FeedForward(**_FEED_FORWARD, when=_sequential),
                ),
            ),
        ),
    ),
)
