"""GIT: a post-norm decoder of one sequence, in which the text follows the tokens of its image encoder."""

from typing import Any

from pyprune.models.depth import Depth
from pyprune.models.families.bert import FEED_FORWARD, SELF_ATTENTION
from pyprune.models.family import Family, Stack
from pyprune.models.head_dims import head_dims
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
                parts=(SELF_ATTENTION, *head_dims(SELF_ATTENTION), FEED_FORWARD),
                extra_tokens=_image_tokens,
            ),
        ),
    ),
)
