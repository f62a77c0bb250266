"""ModernBERT and its decoder: pre-norm, gated feed-forward layers, rotary positions, local attention in most layers."""

from pyprune.models.attention import Attention
from pyprune.models.depth import Depth
from pyprune.models.family import Family, Stack
from pyprune.models.feed_forward import FeedForward
from pyprune.models.head_dims import head_dims

_ENCODING = Attention(
    module="attn",
    fused="attn.Wqkv",
    output="attn.Wo",
    config_key="num_attention_heads",
    derives_head_dim=True,
)
_DECODING = Attention(
    module="attn",
    query="attn.q_proj",
    key="attn.k_proj",
    value="attn.v_proj",
    output="attn.Wo",
    counts=("num_heads",),
    widths=("all_head_size",),
    config_key="num_attention_heads",
    derives_head_dim=True,
)
_FEED_FORWARD = FeedForward(
    inner=("mlp.Wi",),
    output="mlp.Wo",
    entry=("mlp_norm", "mlp"),
    fused=True,
    config_key="intermediate_size",
)
# Layer 0 has no norm in front of its attention.
_DEPTH = Depth("num_hidden_layers", first=1)

FAMILIES = (
    Family(
        model_types=("modernbert",),
        stacks=(
            Stack(
                layers="layers",
                depth=_DEPTH,
                parts=(
                    _ENCODING,
                    *head_dims(_ENCODING, rotary=True),
                    _FEED_FORWARD,
                ),
            ),
        ),
    ),
    Family(
        model_types=("modernbert-decoder",),
        stacks=(
            Stack(
                layers="layers",
                depth=_DEPTH,
                parts=(
                    _DECODING,
                    *head_dims(_DECODING, rotary=True),
                    _FEED_FORWARD,
                ),
            ),
        ),
    ),
)
