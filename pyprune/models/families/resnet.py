"""ResNet: the channels between the convolutions of a residual layer, basic or with a bottleneck.

Channels on the residual stream are shared by all layers of a stage, and stay.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from pyprune.models.channels import Channels
from pyprune.models.family import Family, Stack
from pyprune.models.images import image_size

# The config knows no size of images: this is what the family's processor makes.
_IMAGE_SIZE = 224


def _bottleneck(layer: nn.Module) -> bool:
    return len(layer.layer) == 3


def _basic(layer: nn.Module) -> bool:
    return not _bottleneck(layer)


def _positions(config: Any, stage: int, entered: bool) -> int:
    """Positions of the feature map behind the first layer of a stage, or before it. Strides halve, rounding up."""
    halvings = 2 + stage + (config.downsample_in_first_stage and (entered or stage > 0))
    if stage > 0 and not entered:
        halvings -= 1
    rows, columns = (-(-size // 2**halvings) for size in image_size(config, _IMAGE_SIZE))
    return rows * columns


def _output(config: Any, indices: tuple[int, ...]) -> int:
    return _positions(config, indices[0], entered=True)


def _input(config: Any, indices: tuple[int, ...]) -> int:
    stage, index = indices
    return _positions(config, stage, entered=index > 0)


def _convolution(index: int) -> tuple[str, str]:
    return f"layer.{index}.convolution", f"layer.{index}.normalization"


FAMILIES = (
    Family(
        model_types=("resnet",),
        hidden=False,  # every stage has a width of its own
        stacks=(
            Stack(
                layers="encoder.stages.*.layers",
                parts=(
                    Channels(inner=_convolution(0), output="layer.1.convolution", when=_basic),
                    Channels(
                        inner=_convolution(0),
                        output="layer.1.convolution",
                        name="reduced_channels",
                        after="channels",
                        when=_bottleneck,
                    ),
                    Channels(
                        inner=_convolution(1),
                        output="layer.2.convolution",
                        before="reduced_channels",
                        when=_bottleneck,
                    ),
                ),
                tokens=_output,
                keys=_input,
            ),
        ),
    ),
)
