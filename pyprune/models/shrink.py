"""From the dense model that a config's global widths describe to the pruned one that its other entries describe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from pyprune.core.errors import MismatchError
from pyprune.core.units import HEAD_DIM_AXES, QUERY_HEADS
from pyprune.models.adapter import Record, TransformersAdapter, records
from pyprune.models.hidden import HIDDEN, hidden_group
from pyprune.models.registry import family_of
from pyprune.models.stage_widths import under_construction
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
    noted = records(model, [QUERY_HEADS], asked=())
    if not noted:
        return False
    if _names(noted) & {*HEAD_DIM_AXES, HIDDEN}:
        noted = records(model, [QUERY_HEADS])
    adapter = TransformersAdapter()
    axes = _named_axes(noted)
    anatomy = adapter.anatomy(model, [axis for axis in axes if axis != QUERY_HEADS])
    # The base model inside a task model was cut when it was complete: here it is the rest that has the full width.
    if HIDDEN in (vars(model.config).get(PRUNED_GROUPS) or {}):
        anatomy = replace(anatomy, hidden=hidden_group(model, anatomy, model.config.hidden_size))
    own = family_of(model.config)
    if own and own.stage_widths and not noted[0].prefix:
        anatomy = replace(anatomy, stage_widths=under_construction(model, own.stage_widths(model)))
    wanted = {group.name: group.size for group in anatomy.all_groups}
    apart: set[str] = set()
    for (config, *_), prefix, family, groups in noted:
        apart |= {group.name for group in groups if group.axis == QUERY_HEADS} if QUERY_HEADS in axes else set()
        groups = [group for group in groups if group.name in wanted or group.name in apart]
        if is_pruned(config, family):
            wide = [width.units for width in anatomy.widths] if not prefix else []
            wanted |= read_widths(config, family, prefix, [*groups, *wide])
    # Those that are apart already are in the base model inside, which is cut.
    kept = {group.name: torch.arange(wanted[group.name], device="cpu") for group in anatomy.groups}
    cut_(model, adapter, anatomy, kept)
    if apart:
        _lose_readers(model, adapter, wanted)
    return True


def _lose_readers(model: Any, adapter: TransformersAdapter, wanted: Mapping[str, int]) -> None:
    """Cut the query heads of the layers that `wanted` names, after their key/value heads."""
    anatomy = adapter.anatomy(model, [QUERY_HEADS])
    kept = {group.name: torch.arange(group.size, device="cpu") for group in anatomy.groups}
    for block in anatomy.blocks:
        if block.shared and (count := wanted.get(block.units.name, block.units.size)) < block.units.size:
            heads = block.shared.units.size
            if count < heads:
                raise MismatchError(
                    f"{PRUNED_GROUPS}: {block.units.name} says {count} query heads, for {heads} key/value heads"
                )
            # All first readers, then all second ones, and so on, so that none of the key/value heads goes.
            kept[block.units.name] = torch.argsort(
                torch.arange(block.units.size, device="cpu") % (block.units.size // heads), stable=True
            )[:count]
    cut_(model, adapter, anatomy, kept)


def _named_axes(noted: Sequence[Record]) -> tuple[str, ...]:
    """The axes of blocks that an anatomy must be asked for, that the configs name and that the model has.

    Of dimensions of heads all that it has where its width was cut too: where no other block holds the projections of
    the heads (OLMo 2), only these say that the width runs through them.
    """
    named = _names(noted)
    there = {group.axis for record in noted for group in record.groups}
    wanted = {QUERY_HEADS} & named | {axis for axis in HEAD_DIM_AXES if named & {axis, HIDDEN}}
    return tuple(axis for axis in (QUERY_HEADS, *HEAD_DIM_AXES) if axis in wanted & there)


def _names(noted: Sequence[Record]) -> set[str]:
    """The axes that the configs name, `hidden` among them."""
    return {name.rpartition(".")[2].removeprefix("cross_") for record in noted for name in _named(record.configs[0])}


def _named(config: Any) -> list[str]:
    named = vars(config).get(PRUNED_GROUPS)
    return [name for name in named if isinstance(name, str)] if isinstance(named, dict) else []
