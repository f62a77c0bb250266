"""ResNet: the channels between the convolutions of a residual layer, basic or with a bottleneck; and those that all
layers of a stage hand on, which belong to the stem too where the first stage has no shortcut of its own.
"""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from pyprune.models.channels import Channels
from pyprune.models.family import Family, Stack, base_path
from pyprune.models.images import image_size
from pyprune.models.stage_widths import StageWidth

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


def _stage_widths(model: nn.Module) -> list[StageWidth]:
    base = base_path(model)
    stem = f"{base}embedder.embedder"
    at = [-(-size // 2) for size in image_size(model.config, _IMAGE_SIZE)]
    width = StageWidth("embedder", ("embedding_size",), (0,), (), {f"{stem}.convolution": math.prod(at)})
    width.along.append(f"{stem}.normalization")
    widths, at = [width], [-(-size // 2) for size in at]  # pooled
    for stage, modules in enumerate(model.get_submodule(f"{base}encoder").stages):
        own = (f"hidden_sizes.{stage}",), (stage + 1,), (f"{base}encoder.stages.{stage}",)
        for index, layer in enumerate(modules.layers):
            path = f"{base}encoder.stages.{stage}.layers.{index}"
            ends = [f"{path}.layer.{len(layer.layer) - 1}"]
            width.read[f"{path}.layer.0.convolution"] = math.prod(_strided(at, layer.layer[0].convolution))
            for inner in layer.layer:
                at = _strided(at, inner.convolution)
            if not isinstance(layer.shortcut, nn.Identity):
                width.read[f"{path}.shortcut.convolution"] = math.prod(at)
                ends.append(f"{path}.shortcut")
                width = StageWidth(f"stages.{stage}", *own)
                widths.append(width)
            elif index == 0:  # one width for the stem and the stage
                width.config_keys, width.features, width.stages = width.config_keys + own[0], (0, 1), own[2]
            width.written |= {f"{end}.convolution": math.prod(at) for end in ends}
            width.along += [f"{end}.normalization" for end in ends]
    if isinstance(getattr(model, "classifier", [None])[-1], nn.Linear):
        width.read["classifier.1"] = 1
    return widths


def _strided(size: list[int], convolution: nn.Conv2d) -> list[int]:
    return [-(-length // stride) for length, stride in zip(size, convolution.stride, strict=True)]


def _convolution(index: int) -> tuple[str, str]:
    return f"layer.{index}.convolution", f"layer.{index}.normalization"


FAMILIES = (
    Family(
        model_types=("resnet",),
        hidden=False,
        stage_widths=_stage_widths,
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
