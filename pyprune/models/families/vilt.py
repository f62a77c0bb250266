"""ViLT: a pre-norm encoder of one sequence, in which the patches of an image follow the text."""

from dataclasses import replace
from typing import Any

from pyprune.models.depth import Depth
from pyprune.models.families.bert import FEED_FORWARD, SELF_ATTENTION
from pyprune.models.family import Family, Stack
from pyprune.models.head_dims import head_dims
from pyprune.models.images import patches


def _image_tokens(config: Any, indices: tuple[int, ...]) -> int:
    most = config.max_image_length if config.max_image_length >= 0 else patches(config)
    return min(most, patches(config)) + 1


_ATTENTION = replace(
    SELF_ATTENTION,
    module="attention.attention",
    query="attention.attention.query",
    key="attention.attention.key",
    value="attention.attention.value",
    exit=(),
)

FAMILIES = (
    Family(
        model_types=("vilt",),
        stacks=(
            Stack(
                layers="encoder.layer",
                depth=Depth("num_hidden_layers"),
                pairs=True,
                parts=(
                    _ATTENTION,
                    *head_dims(_ATTENTION),
                    replace(FEED_FORWARD, entry=("layernorm_after", "intermediate"), exit=()),
                ),
                extra_tokens=_image_tokens,
            ),
        ),
    ),
)
