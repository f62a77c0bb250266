"""GPT-2: a pre-norm decoder of `Conv1D` layers with one projection for queries, keys and values."""

from pyprune.models.attention import Attention
from pyprune.models.family import Family, Stack
from pyprune.models.feed_forward import FeedForward

FAMILIES = (
    Family(
        model_types=("gpt2",),
        stacks=(
            Stack(
                layers="h",
                parts=(
                    Attention(
                        module="attn",
                        fused="attn.c_attn",
                        output="attn.c_proj",
                        counts=("num_heads",),
                        widths=("split_size",),
                        config_key="n_head",
                        derives_head_dim=True,
                    ),
                    Attention(
                        module="crossattention",
                        query="crossattention.q_attn",
                        fused="crossattention.c_attn",
                        output="crossattention.c_proj",
                        counts=("num_heads",),
                        widths=("split_size",),
                        cross=True,
                        when=lambda layer: hasattr(layer, "crossattention"),
                    ),
                    FeedForward(
                        inner=("mlp.c_fc",),
                        output="mlp.c_proj",
                        entry=("ln_2", "mlp"),
                        config_key="n_inner",
                    ),
                ),
            ),
        ),
    ),
)
