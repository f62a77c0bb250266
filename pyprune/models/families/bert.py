"""BERT and its relatives: post-norm encoders with one head count for queries, keys and values."""

from pyprune.models.attention import Attention
from pyprune.models.depth import Depth
from pyprune.models.family import Family, Stack
from pyprune.models.feed_forward import FeedForward
from pyprune.models.head_dims import head_dims

_SELF = Attention(
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
_CROSS = Attention(
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
_FEED_FORWARD = FeedForward(
    inner=("intermediate.dense",),
    output="output.dense",
    entry=("intermediate",),
    exit=("output.LayerNorm",),
    config_key="intermediate_size",
)
_PARTS = (_SELF, *head_dims(_SELF), _CROSS, _FEED_FORWARD)

FAMILIES = (
    Family(
        model_types=("bert", "roberta", "xlm-roberta", "camembert", "data2vec-text", "electra", "ernie"),
        stacks=(
            Stack(
                layers="encoder.layer",
                parts=_PARTS,
                depth=Depth("num_hidden_layers"),
            ),
        ),
    ),
)
