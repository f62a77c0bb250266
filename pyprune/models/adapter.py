"""The one adapter: it applies the tables of the families to whatever transformers model it is given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from pyprune.core.anatomy import Anatomy
from pyprune.core.errors import InputError
from pyprune.models.family import Family
from pyprune.models.registry import FAMILIES
from pyprune.models.widths import configs_below, twins, write_widths


def adapter_for(model_or_config: Any) -> TransformersAdapter:
    """The adapter of a transformers model or config; InputError lists the supported model types when there is no table
    for its type or for a model inside it.

    >>> adapter_for(model).anatomy(model)
    """
    config = getattr(model_or_config, "config", model_or_config)
    if not any(model_type in FAMILIES for model_type in model_types(config)):
        FAMILIES[getattr(config, "model_type", type(model_or_config).__name__)]
    return TransformersAdapter()


class Member(NamedTuple):
    """A transformers model of a known family inside another (or the whole): its path, ending in a dot if not empty."""

    prefix: str
    model: Any
    family: Family


class TransformersAdapter:
    """Implements `core.anatomy.Adapter` for every model whose type, or the types of whose members, have a table."""

    def anatomy(self, model: nn.Module) -> Anatomy:
        """Blocks and unit groups of `model` as it stands now, a pruned model included.

        `model` is the bare model or any of its task models. InputError when its config asks for something that cannot
        be pruned exactly, or when its modules are not those of the family.
        """
        layers: dict[str, None] = {}
        blocks = []
        for member in members(model):
            for place, part in member.family.parts(member.model, member.prefix):
                layers[place.path] = None
                blocks.append(part.block(place))
        if not blocks:
            raise InputError(
                f"{type(model).__name__} holds no layers of a known family: "
                "give the transformers model itself, not a wrapper of it"
            )
        return Anatomy(model.config.model_type, tuple(layers), tuple(blocks))

    def resized(self, model: nn.Module, anatomy: Anatomy, kept: Mapping[str, torch.Tensor]) -> None:
        """Bring derived attributes, emptied blocks and the config in line after the weights were cut."""
        for group in anatomy.groups:
            for attribute in group.attributes:
                module = model.get_submodule(attribute.module)
                setattr(module, attribute.name, attribute.per_unit * len(kept[group.name]))
        before = {group.name: group for group in anatomy.groups}
        sizes = {name: len(units) for name, units in kept.items()}
        for member in members(model):
            groups = []
            for place, part in member.family.parts(member.model, member.prefix):
                group = part.block(place).units
                groups.append(before[group.name])
                if group.size == 0:
                    part.emptied(place)
            for config in configs_of(member, model.config):
                write_widths(config, member.family, member.prefix, groups, sizes)


def configs_of(member: Member, root: Any) -> list[Any]:
    """Every config that describes `member`: its own, and those inside `root`, the config of the whole model."""
    own = member.model.config
    inside = twins(root, own.model_type, member.prefix) if member.prefix else []
    return [own, *(config for config in inside if config is not own)]


def members(model: nn.Module) -> Iterator[Member]:
    """Transformers models of known families in `model`, itself included; parts of one that share its type are not
    told apart from it."""
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        return
    found: list[tuple[str, str]] = []
    for path, module in model.named_modules():
        if not isinstance(module, PreTrainedModel) or module.config.model_type not in FAMILIES:
            continue
        model_type = module.config.model_type
        prefix = f"{path}." if path else ""
        if any(model_type == outer_type and prefix.startswith(outer) for outer, outer_type in found):
            continue
        found.append((prefix, model_type))
        yield Member(prefix, module, FAMILIES[model_type])


def model_types(config: Any) -> set[str]:
    """The types of the model that `config` describes and of the models inside it."""
    return {getattr(c, "model_type", "") for c in (config, *(below for _, below in configs_below(config)))}
