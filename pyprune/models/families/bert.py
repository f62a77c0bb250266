"""BERT and its relatives: post-norm encoders with one head count for queries, keys and values."""

from pyprune.models.attention import Attention
from pyprune.models.family import Family, Stack
from pyprune.models.feed_forward import FeedForward

FAMILIES = (
    Family(
        model_types=("bert", "roberta"),
        stacks=(
            Stack(
                layers="encoder.layer",
                parts=(
                    Attention(
                        module="attention.self",
                        query="attention.self.query",
                        key="attention.self.key",
                        value="attention.self.value",
                        output="attention.output.dense",
                        exit=("attention.output.LayerNorm",),
                        head_dim="attention_head_size",
                        counts=("num_attention_heads",),
                        widths=("all_head_size",),
                        config_key="num_attention_heads",
                        derives_head_dim=True,
                    ),
                    FeedForward(
                        inner=("intermediate.dense",),
                        output="output.dense",
                        entry=("intermediate",),
                        exit=("output.LayerNorm",),
                        config_key="intermediate_size",
                    ),
                ),
            ),
        ),
        refused=(("add_cross_attention", True, "a config has one head count for self- and cross-attention"),),
    ),
)
