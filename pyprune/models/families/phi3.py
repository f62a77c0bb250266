"""Phi-3 and Phi-4: Llama's layers with fused projections."""

from pyprune.models.attention import Attention
from pyprune.models.depth import Depth
from pyprune.models.family import Family, Stack
from pyprune.models.feed_forward import FeedForward
from pyprune.models.head_dims import head_dims

_ATTENTION = Attention(
    module="self_attn",
    fused="self_attn.qkv_proj",
    output="self_attn.o_proj",
    queries_per_unit="num_key_value_groups",
    unit_counts=("num_key_value_heads",),
    config_counts=("num_attention_heads",),
    config_key="num_key_value_heads",
    queries_key="num_attention_heads",
    apart=True,
)

FAMILIES = (
    Family(
        model_types=("phi3",),
        stacks=(
            Stack(
                layers="layers",
                depth=Depth("num_hidden_layers"),
                parts=(
                    _ATTENTION,
                    *head_dims(_ATTENTION, rotary=True, partial=True),
                    FeedForward(
                        inner=("mlp.gate_up_proj",),
                        fused=True,
                        output="mlp.down_proj",
                        entry=("post_attention_layernorm", "mlp"),
                        config_key="intermediate_size",
                    ),
                ),
            ),
        ),
    ),
)
