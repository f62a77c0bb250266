"""ConvNeXt: the channels between the two pointwise convolutions of a layer, which are linear layers here.

Channels of the depthwise convolution are those of the residual stream, shared by all layers of a stage, and stay.
"""

from __future__ import annotations

from typing import Any

from pyprune.models.channels import Channels
from pyprune.models.family import Family, Stack
from pyprune.models.images import pair


def _positions(config: Any, indices: tuple[int, ...]) -> int:
    """Positions of a stage's feature map: whole patches, then every stage but the first halves, rounding down."""
    rows, columns = (size // config.patch_size // 2 ** indices[0] for size in pair(config.image_size))
    return rows * columns


FAMILIES = (
    Family(
        model_types=("convnext",),
        hidden=False,  # every stage has a width of its own
        stacks=(
            Stack(
                layers="encoder.stages.*.layers",
                parts=(Channels(inner=("pwconv1",), output="pwconv2"),),
                tokens=_positions,
            ),
        ),
    ),
)
