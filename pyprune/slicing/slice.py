"""Cut a model to a plan: fewer channels in its linear layers, nothing else touched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import nn

from pyprune import ops
from pyprune.core.anatomy import Adapter, Anatomy, Side
from pyprune.core.errors import InputError
from pyprune.core.plan import Plan


def slice_(model: nn.Module, adapter: Adapter, plan: Plan) -> nn.Module:
    """Remove every unit that `plan` does not keep, in place, and return `model`.

    The result computes what the masked model computes: output biases, norms and the softmax scale stay. Layers that
    keep all their units keep their very parameters. Raises MismatchError when the plan was made for another model, and
    InputError when a layer is not a plain linear layer (quantised, or wrapped by an adapter library); the model is
    untouched in both cases. All cut weights are made before the first is replaced, so both are held for a moment.

    >>> slice_(model, adapter_for(model), plan)
    """
    anatomy = adapter.anatomy(model)
    plan.check(anatomy)
    return cut_(model, adapter, anatomy, plan.kept)


def cut_(model: nn.Module, adapter: Adapter, anatomy: Anatomy, kept: Mapping[str, torch.Tensor]) -> nn.Module:
    """Slice `model` to the kept unit indices of every group of `anatomy`; `slice_` without the checks of a plan."""
    cuts: dict[str, dict[Side, torch.Tensor]] = {}
    for group in anatomy.groups:
        if len(kept[group.name]) < group.size:
            channels = {cut.width: _channels(kept[group.name], cut.width) for cut in group.cuts}
            for cut in group.cuts:
                cuts.setdefault(cut.module, {})[cut.side] = channels[cut.width]
    _cut_linears_([(_linear(model, name), sides) for name, sides in cuts.items()])
    adapter.resized(model, anatomy, kept)
    return model


def _channels(units: torch.Tensor, width: int) -> torch.Tensor:
    """Channel indices `[units * width]` of the kept units."""
    return (units[:, None] * width + torch.arange(width)).flatten()


def _linear(model: nn.Module, name: str) -> nn.Linear:
    layer = model.get_submodule(name)
    if type(layer) is not nn.Linear:
        raise InputError(
            f"{name} is a {type(layer).__name__}, not a plain linear layer: "
            "prune before quantising, and merge adapters first"
        )
    return layer


class _Piece(NamedTuple):
    """One parameter that loses channels: the indices that stay along its dimensions, None for all."""

    layer: nn.Linear
    name: str
    rows: torch.Tensor | None
    columns: torch.Tensor | None

    @property
    def parameter(self) -> nn.Parameter:
        return getattr(self.layer, self.name)


def _cut_linears_(layers: list[tuple[nn.Linear, dict[Side, torch.Tensor]]]) -> None:
    """Cut all layers to the channels of their sides. Nothing is assigned before everything is there."""
    pieces = [_Piece(layer, "weight", sides.get("out"), sides.get("in")) for layer, sides in layers]
    pieces += [
        _Piece(layer, "bias", sides["out"], None)
        for layer, sides in layers
        if "out" in sides and layer.bias is not None
    ]
    cut: list[tuple[_Piece, torch.Tensor]] = []
    for device in {p.parameter.device: None for p in pieces}:
        some = [p for p in pieces if p.parameter.device == device]
        tensors = ops.gather_compact([p.parameter for p in some], [p.rows for p in some], [p.columns for p in some])
        cut += zip(some, tensors, strict=True)
    for piece, tensor in cut:
        setattr(piece.layer, piece.name, nn.Parameter(tensor, requires_grad=piece.parameter.requires_grad))
    for layer, _ in layers:
        layer.out_features, layer.in_features = layer.weight.shape
