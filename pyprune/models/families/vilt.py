"""ViLT: a pre-norm encoder of one sequence, in which the patches of an image follow the text."""

from typing import Any

from pyprune.models.attention import Attention
from pyprune.models.depth import Depth
from pyprune.models.family import Family, Stack
from pyprune.models.feed_forward import FeedForward
from pyprune.models.images import patches


def _image_tokens(config: Any, indices: tuple[int, ...]) -> int:
    most = config.max_image_length if config.max_image_length >= 0 else patches(config)
    return min(most, patches(config)) + 1


FAMILIES = (
    Family(
        model_types=("vilt",),
        stacks=(
            Stack(
                layers="encoder.layer",
                depth=Depth("num_hidden_layers"),
                parts=(
                    Attention(
                        module="attention.attention",
                        query="attention.attention.query",
                        key="attention.attention.key",
                        value="attention.attention.value",
                        output="attention.output.dense",
                        head_dim="attention_head_size",
                        counts=("num_attention_heads",),
                        widths=("all_head_size",),
                        config_key="num_attention_heads",
                        derives_head_dim=True,
                    ),
                    FeedForward(
                        inner=("intermediate.dense",),
                        output="output.dense",
                        entry=("layernorm_after", "intermediate"),
                        config_key="intermediate_size",
                    ),
                ),
                extra_tokens=_image_tokens,
            ),
        ),
    ),
)
