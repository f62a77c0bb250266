"""Shapes that a family's own config can describe: checkpoints that load without pyprune."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from pyprune.core.anatomy import Anatomy
from pyprune.core.units import asked, group_kind
from pyprune.models.adapter import TransformersAdapter, configs_of, members
from pyprune.models.stage_widths import native_widths
from pyprune.models.tokens import PRUNED_TOKENS
from pyprune.models.widths import PRUNED_GROUPS, spell_out_layers, twins
from pyprune.slicing.slice import cut_


def make_native_(model: Any) -> bool:
    """Say the widths of the pruned `model` in its config's own attributes, if that is possible.

    Layers of a stack must have one shape. That the config then describes this very model is proved, not assumed: one is
    built from it, without pyprune's entries, and must agree in the shape of every tensor and in every number that a
    module remembers. Returns False and leaves the config alone where it does not.
    """
    settings = _settings(model)
    if any(vars(c).get(PRUNED_TOKENS) for member in members(model) for c in configs_of(member, model.config)):
        return False  # no family's own config says that layers see fewer tokens
    if settings is None or not _describes(_changed(model, settings), model):
        return False
    vars(model.config).pop(PRUNED_GROUPS, None)
    for member in members(model):
        for config in configs_of(member, model.config):
            _set(config, settings[member.prefix])
    return True


def native_groups(model: Any) -> set[str]:
    """Names of the groups whose width, one for all layers of a stack, the family's config can describe."""
    groups = TransformersAdapter().anatomy(model).groups
    found = set()
    for kind in dict.fromkeys(map(group_kind, groups)):
        alike = {g.name for g in groups if group_kind(g) == kind}
        kept = {g.name: torch.arange((g.size + 1) // 2 if g.name in alike else g.size, device="cpu") for g in groups}
        if is_native(model, kept):
            found |= alike
    return found


def native_stages(model: Any, anatomy: Anatomy) -> set[str]:
    """Names of the groups whose sizes the family's config can describe if all of a stage shrink in proportion."""
    kept = {group.name: torch.arange((group.size + 1) // 2, device="cpu") for group in anatomy.groups}
    stages = {name for width in anatomy.stage_widths for name in (width.units.name, *width.inner)}
    return stages if stages and is_native(model, kept, asked(group.axis for group in anatomy.groups)) else set()


def is_native(model: Any, kept: Mapping[str, torch.Tensor], axes: Sequence[str] | None = None) -> bool:
    """Whether the family's config can describe what is left of `model` when of each group the units `kept[name]` stay.

    Tried on a copy without weights. `axes` are those of `kept` that belong to no block.
    """
    adapter = TransformersAdapter()
    with torch.device("meta"):
        twin = type(model)(copy.deepcopy(model.config))
    return make_native_(cut_(twin, adapter, adapter.anatomy(twin, axes), kept))


def _settings(model: nn.Module) -> dict[str, dict[str, Any]] | None:
    """`{prefix of a member: {attribute of its config: value}}`; None when layers differ."""
    found: dict[str, dict[str, Any]] = {}
    for member in members(model):
        mine = found.setdefault(member.prefix, {})
        for place, part in member.parts():
            for name, value in part.native(place).items():
                if mine.setdefault(name, value) != value:
                    return None
        if member.family.stage_widths and not member.prefix:
            mine |= native_widths(member.model, member.family.stage_widths(member.model))
    return found


def _changed(model: Any, settings: dict[str, dict[str, Any]]) -> Any:
    """A copy of the model's config with the settings of every member."""
    config = copy.deepcopy(model.config)
    vars(config).pop(PRUNED_GROUPS, None)
    for member in members(model):
        inside = twins(config, member.model.config.model_type, member.prefix) if member.prefix else [config]
        for target in inside:
            _set(target, settings[member.prefix])
    return config


def _set(config: Any, values: dict[str, Any]) -> None:
    vars(config).pop(PRUNED_GROUPS, None)
    if getattr(config, "is_heterogeneous", False):
        config.per_layer_config = None
        spell_out_layers(config, False)
    for name, value in values.items():
        setattr(config, name, value)


def _describes(config: Any, model: nn.Module) -> bool:
    try:
        with torch.device("meta"):
            built = type(model)(config)
    except (ValueError, RuntimeError, TypeError, ZeroDivisionError, AssertionError):
        return False  # the family's own check of its config
    return dict(_facts(built)) == dict(_facts(model))


def _facts(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, tensor in model.state_dict().items():
        yield name, tensor.shape
    for path, module in model.named_modules():
        yield f"{path} class", type(module)
        for name, value in vars(module).items():
            if type(value) in (int, float):
                yield f"{path}.{name} number", value
