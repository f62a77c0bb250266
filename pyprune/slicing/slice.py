"""Cut a model to a plan: fewer channels in its linear layers, nothing else touched."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from pyprune.core.anatomy import Adapter, Anatomy, Cut
from pyprune.core.errors import InputError
from pyprune.core.plan import Plan


def slice_(model: nn.Module, adapter: Adapter, plan: Plan) -> nn.Module:
    """Remove every unit that `plan` does not keep, in place, and return `model`.

    The result computes what the masked model computes: output biases, norms and the softmax scale stay. Layers that
    keep all their units keep their very parameters. Raises MismatchError when the plan was made for another model, and
    InputError when a layer is not a plain linear layer (quantised, or wrapped by an adapter library); the model is
    untouched in both cases.

    >>> slice_(model, adapter_for(model), plan)
    """
    anatomy = adapter.anatomy(model)
    plan.check(anatomy)
    return cut_(model, adapter, anatomy, plan.kept)


def cut_(model: nn.Module, adapter: Adapter, anatomy: Anatomy, kept: Mapping[str, torch.Tensor]) -> nn.Module:
    """Slice `model` to the kept unit indices of every group of `anatomy`; `slice_` without the checks of a plan."""
    cuts = [
        (cut, _channels(kept[g.name], cut.width))
        for g in anatomy.groups
        if len(kept[g.name]) < g.size
        for cut in g.cuts
    ]
    layers = [(_linear(model, cut), cut, channels) for cut, channels in cuts]
    for layer, cut, channels in layers:
        _cut_linear_(layer, cut, channels)
    adapter.resized(model, anatomy, kept)
    return model


def _channels(units: torch.Tensor, width: int) -> torch.Tensor:
    """Channel indices `[units * width]` of the kept units."""
    return (units[:, None] * width + torch.arange(width)).flatten()


def _linear(model: nn.Module, cut: Cut) -> nn.Linear:
    layer = model.get_submodule(cut.module)
    if type(layer) is not nn.Linear:
        raise InputError(
            f"{cut.module} is a {type(layer).__name__}, not a plain linear layer: "
            "prune before quantising, and merge adapters first"
        )
    return layer


def _cut_linear_(layer: nn.Linear, cut: Cut, channels: torch.Tensor) -> None:
    layer.weight = _select(layer.weight, 1 if cut.side == "in" else 0, channels)
    if cut.side == "in":
        layer.in_features = len(channels)
        return
    layer.out_features = len(channels)
    if layer.bias is not None:
        layer.bias = _select(layer.bias, 0, channels)


def _select(parameter: torch.Tensor, dim: int, channels: torch.Tensor) -> nn.Parameter:
    selected = parameter.detach().index_select(dim, channels.to(parameter.device))
    return nn.Parameter(selected, requires_grad=parameter.requires_grad)
