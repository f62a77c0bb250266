"""GIT: a post-norm decoder of one sequence, in which the text follows the tokens of its image encoder."""

from typing import Any

from pyprune.models.attention import Attention
from pyprune.models.depth import Depth
from pyprune.models.family import Family, Stack
from pyprune.models.feed_forward import FeedForward
from pyprune.models.images import patches


def _image_tokens(config: Any, indices: tuple[int, ...]) -> int:
    return (patches(config.vision_config) + 1) * (config.num_image_with_embedding or 1)


FAMILIES = (
    Family(
        model_types=("git",),
        stacks=(
            Stack(
                layers="encoder.layer",
                depth=Depth("num_hidden_layers"),
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
                extra_tokens=_image_tokens,
            ),
        ),
    ),
)
