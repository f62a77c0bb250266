"""Llama and its relatives: pre-norm decoders with rotary positions, grouped queries and gated feed-forward layers."""

from pyprune.models.attention import Attention
from pyprune.models.depth import Depth
from pyprune.models.family import Family, Stack
from pyprune.models.feed_forward import FeedForward
from pyprune.models.head_dims import head_dims

# Families with the same layers in other surroundings take these tables too.
GROUPED_ATTENTION = Attention(
    module="self_attn",
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    value="self_attn.v_proj",
    output="self_attn.o_proj",
    queries_per_unit="num_key_value_groups",
    config_key="num_key_value_heads",
    queries_key="num_attention_heads",
    apart=True,
)
HEAD_DIMS = head_dims(GROUPED_ATTENTION, rotary=True)
GATED_FEED_FORWARD = FeedForward(
    inner=("mlp.gate_proj", "mlp.up_proj"),
    output="mlp.down_proj",
    entry=("post_attention_layernorm", "mlp"),
    counts=("mlp.intermediate_size",),
    config_key="intermediate_size",
)

FAMILIES = (
    Family(
        model_types=("llama", "mistral", "qwen2", "qwen3", "smollm3"),
        stacks=(
            Stack(
                layers="layers",
                depth=Depth("num_hidden_layers", lists=("layer_types", "no_rope_layers")),
                parts=(GROUPED_ATTENTION, *HEAD_DIMS, GATED_FEED_FORWARD),
            ),
        ),
    ),
)
