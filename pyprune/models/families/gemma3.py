"""Gemma 3: decoders of text with a norm before and after each block; the text half of the multimodal models too."""

from pyprune.models.attention import Attention
from pyprune.models.depth import Depth
from pyprune.models.family import Family, Stack
from pyprune.models.feed_forward import FeedForward

FAMILIES = (
    Family(
        model_types=("gemma3_text",),
        stacks=(
            Stack(
                layers="layers",
                depth=Depth("num_hidden_layers"),
                parts=(
                    Attention(
                        module="self_attn",
                        query="self_attn.q_proj",
                        key="self_attn.k_proj",
                        value="self_attn.v_proj",
                        output="self_attn.o_proj",
                        queries_per_unit="num_key_value_groups",
                        config_key="num_key_value_heads",
                        exit=None,  # the output passes a norm before it is added
                    ),
                    FeedForward(
                        inner=("mlp.gate_proj", "mlp.up_proj"),
                        output="mlp.down_proj",
                        entry=("pre_feedforward_layernorm", "mlp"),
                        exit=None,
                        config_key="intermediate_size",
                    ),
                ),
            ),
        ),
    ),
)
