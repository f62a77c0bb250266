"""From the dense model that a config's global widths describe to the pruned one that its other entries describe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from pyprune.core.anatomy import HEAD_DIM_AXES
from pyprune.models.adapter import Record, TransformersAdapter, records
from pyprune.models.hidden import HIDDEN, hidden_group
from pyprune.models.registry import family_of
from pyprune.models.widths import PRUNED_GROUPS, is_pruned, read_widths
from pyprune.slicing.slice import cut_


def is_pruned_config(config: Any) -> bool:
    """Whether the config is one of a family that pyprune knows, and asks for layers that differ in width."""
    family = family_of(config)
    return family is not None and is_pruned(config, family)


def shrink_(model: Any) -> bool:
    """Cut a freshly built model to the widths that its config asks for, in place; nothing when it has them already.

    Which units stay does not matter: the weights are loaded or initialised afterwards. Returns whether `model` holds
    layers; a part of a model (a decoder inside its body) may not, and is left to the whole. MismatchError when the
    config asks for what cannot be cut from the dense model.
    """
    noted = records(model)
    if not noted:
        return False
    adapter = TransformersAdapter()
    anatomy = adapter.anatomy(model, _head_dim_axes(noted))
    if HIDDEN in (vars(model.config).get(PRUNED_GROUPS) or {}):
        # The base model inside a task model was cut when it was complete: here it is the rest that has the full width.
        anatomy = replace(anatomy, hidden=hidden_group(model, anatomy, model.config.hidden_size))
    wanted = {group.name: group.size for group in anatomy.groups}
    for (config, *_), prefix, family, groups in noted:
        groups = [group for group in groups if group.name in wanted]
        if is_pruned(config, family):
            wide = [anatomy.hidden.units] if anatomy.hidden and not prefix else []
            wanted |= read_widths(config, family, prefix, [*groups, *wide])
    cut_(model, adapter, anatomy, {name: torch.arange(size, device="cpu") for name, size in wanted.items()})
    return True


def _head_dim_axes(noted: Sequence[Record]) -> tuple[str, ...]:
    """The axes of head dimensions that the configs name and the model has."""
    named = {name.rpartition(".")[2] for record in noted for name in _named(record.configs[0])}
    there = {group.axis for record in noted for group in record.groups}
    return tuple(axis for axis in HEAD_DIM_AXES if axis in named & there)


def _named(config: Any) -> list[str]:
    named = vars(config).get(PRUNED_GROUPS)
    return [name for name in named if isinstance(name, str)] if isinstance(named, dict) else []
