"""ModernBERT: a pre-norm encoder with fused projections, rotary positions and local attention in most layers."""

from pyprune.models.attention import Attention
from pyprune.models.family import Family, Stack
from pyprune.models.feed_forward import FeedForward

FAMILIES = (
    Family(
        model_types=("modernbert",),
        stacks=(
            Stack(
                layers="layers",
                parts=(
                    Attention(
                        module="attn",
                        fused="attn.Wqkv",
                        output="attn.Wo",
                        config_key="num_attention_heads",
                        derives_head_dim=True,
                    ),
                    FeedForward(
                        inner=("mlp.Wi",),
                        output="mlp.Wo",
                        entry=("mlp_norm", "mlp"),
                        fused=True,
                        config_key="intermediate_size",
                    ),
                ),
            ),
        ),
    ),
)
