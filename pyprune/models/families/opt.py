"""OPT: pre-norm decoders with biased projections; the 350M model alone is post-norm."""

from dataclasses import replace

from torch import nn

from pyprune.models.attention import Attention
from pyprune.models.depth import Depth
from pyprune.models.family import Family, Stack
from pyprune.models.feed_forward import FeedForward
from pyprune.models.head_dims import head_dims


def _pre_norm(layer: nn.Module) -> bool:
    return layer.do_layer_norm_before


def _post_norm(layer: nn.Module) -> bool:
    return not layer.do_layer_norm_before


_ATTENTION = Attention(
    module="self_attn",
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    value="self_attn.v_proj",
    output="self_attn.out_proj",
    counts=("num_heads",),
    config_key="num_attention_heads",
    derives_head_dim=True,
)
_FEED_FORWARD = {"inner": ("fc1",), "output": "fc2", "config_key": "ffn_dim"}
_TO_NEURONS = ("fc1", "activation_fn")

FAMILIES = (
    Family(
        model_types=("opt",),
        stacks=(
            Stack(
                layers="decoder.layers",
                depth=Depth("num_hidden_layers"),
                parts=(
                    replace(_ATTENTION, when=_pre_norm),
                    replace(_ATTENTION, exit=("self_attn_layer_norm",), when=_post_norm),
                    *head_dims(_ATTENTION),
                    FeedForward(**_FEED_FORWARD, entry=("final_layer_norm", *_TO_NEURONS), when=_pre_norm),
                    FeedForward(**_FEED_FORWARD, entry=_TO_NEURONS, exit=("final_layer_norm",), when=_post_norm),
                ),
            ),
        ),
    ),
)
