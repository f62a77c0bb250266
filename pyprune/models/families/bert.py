"""BERT and its relatives: post-norm encoders with one head count for queries, keys and values."""

from pyprune.models.attention import Attention
from pyprune.models.depth import Depth
from pyprune.models.family import Family, Stack
from pyprune.models.feed_forward import FeedForward
from pyprune.models.head_dims import head_dims

# Families with the same layers in other surroundings take these tables too.
SELF_ATTENTION = Attention(
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
)
# The config has one head count for both attentions, and it speaks for the first.
CROSS_ATTENTION = Attention(
    module="crossattention.self",
    query="crossattention.self.query",
    key="crossattention.self.key",
    value="crossattention.self.value",
    output="crossattention.output.dense",
    exit=None,
    head_dim="attention_head_size",
    counts=("num_attention_heads",),
    widths=("all_head_size",),
    cross=True,
    when=lambda layer: hasattr(layer, "crossattention"),
)
FEED_FORWARD = FeedForward(
    inner=("intermediate.dense",),
    output="output.dense",
    entry=("intermediate",),
    exit=("output.LayerNorm",),
    config_key="intermediate_size",
)

FAMILIES = (
    Family(
        model_types=("bert", "roberta", "xlm-roberta", "camembert", "data2vec-text", "electra", "ernie"),
        stacks=(
            Stack(
                layers="encoder.layer",
                depth=Depth("num_hidden_layers"),
                parts=(
                    SELF_ATTENTION,
                    *head_dims(SELF_ATTENTION),
                    CROSS_ATTENTION,
                    *head_dims(CROSS_ATTENTION),
                    FEED_FORWARD,
                ),
            ),
        ),
    ),
)
