"""ConvNeXt: the channels between the two pointwise convolutions of a layer, which are linear layers here; and those
that all layers of a stage hand on, which are the depthwise convolution's too.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from pyprune.models.channels import Channels
from pyprune.models.family import Family, Stack, base_path
from pyprune.models.images import pair
from pyprune.models.stage_widths import StageWidth


def _positions(config: Any, indices: tuple[int, ...]) -> int:
    """Positions of a stage's feature map: whole patches, then every stage but the first halves, rounding down."""
    rows, columns = (size // config.patch_size // 2 ** indices[0] for size in pair(config.image_size))
    return rows * columns


def _stage_widths(model: nn.Module) -> list[StageWidth]:
    base, widths = base_path(model), []
    for stage, modules in enumerate(model.get_submodule(f"{base}encoder").stages):
        path, at = f"{base}encoder.stages.{stage}", _positions(model.config, (stage,))
        before = widths[-1:]
        width = StageWidth(f"stages.{stage}", (f"hidden_sizes.{stage}",), (stage + 1,) if stage else (0, 1), (path,))
        widths.append(width)
        if stage == 0:
            width.written[f"{base}embeddings.patch_embeddings"] = at
            width.along.append(f"{base}embeddings.layernorm")
        for previous in before:
            previous.along.append(f"{path}.downsampling_layer.0")
            previous.read[f"{path}.downsampling_layer.1"] = at
            width.written[f"{path}.downsampling_layer.1"] = at
        for index, layer in enumerate(modules.layers):
            inside = f"{path}.layers.{index}"
            width.written |= {f"{inside}.dwconv": at, f"{inside}.pwconv2": at}
            width.along.append(f"{inside}.layernorm")
            width.read[f"{inside}.pwconv1"] = at
            if layer.layer_scale_parameter is not None:
                width.along.append(f"{inside}.layer_scale_parameter")
    if hasattr(model, "hidden_states_norms"):
        for name in model.hidden_states_norms:
            widths[max(model.stage_names.index(name) - 1, 0)].along.append(f"hidden_states_norms.{name}")
    else:
        widths[-1].along.append(f"{base}layernorm")
    if isinstance(getattr(model, "classifier", None), nn.Linear):
        widths[-1].read["classifier"] = 1
    return widths


FAMILIES = (
    Family(
        model_types=("convnext",),
        hidden=False,
        stage_widths=_stage_widths,
        stacks=(
            Stack(
                layers="encoder.stages.*.layers",
                parts=(Channels(inner=("pwconv1",), output="pwconv2"),),
                tokens=_positions,
            ),
        ),
    ),
)
