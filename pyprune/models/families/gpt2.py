"""GPT-2: a pre-norm decoder of `Conv1D` layers with one projection for queries, keys and values."""

from typing import Any

from pyprune.models.attention import Attention
from pyprune.models.depth import Depth
from pyprune.models.family import Family, Stack
from pyprune.models.feed_forward import FeedForward


def _scaled_by_number(config: Any) -> str:
    return "its attention is scaled by the layer's number" if config.scale_attn_by_inverse_layer_idx else ""


FAMILIES = (
    Family(
        model_types=("gpt2",),
        stacks=(
            Stack(
                layers="h",
                depth=Depth("n_layer", refuses=_scaled_by_number),
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
