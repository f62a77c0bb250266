"""Widths in configs: what a checkpoint says about the shapes of its layers.

A width stands in transformers' own `per_layer_config` where the family's config has an attribute for it (key/value
caches are made from these), and in `pruned_groups`, under its group's name, where it has none. Only widths that differ
from the dense model's are written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pyprune.core.errors import MismatchError
from pyprune.core.units import HEAD_DIM_AXES, UnitGroup
from pyprune.models.family import Family
from pyprune.models.tokens import PRUNED_TOKENS

PRUNED_GROUPS = "pruned_groups"


def is_pruned(config: Any, family: Family) -> bool:
    """Whether layers differ in widths that `family` knows, or in tokens that they see, and in nothing else."""
    if vars(config).get(PRUNED_GROUPS) or vars(config).get(PRUNED_TOKENS):
        return True
    return bool(getattr(config, "is_heterogeneous", False)) and config.per_layer_attributes <= family.config_keys


def read_widths(config: Any, family: Family, prefix: str, groups: Sequence[UnitGroup]) -> dict[str, int]:
    """The size that `config` asks for, for every one of `groups`, whose names begin with `prefix`.

    MismatchError for a size that cannot be cut from the group, and for an entry of a group that is not there or stands
    elsewhere, unless the model leaves out its whole stack (an encoder loaded from the checkpoint of an
    encoder-decoder).
    """
    named = vars(config).get(PRUNED_GROUPS) or {}
    if not isinstance(named, Mapping):
        raise MismatchError(f"{PRUNED_GROUPS}: expected sizes by the names of groups, found {named!r:.40}")
    named = dict(named)
    layers = config.per_layer_config if getattr(config, "is_heterogeneous", False) else None
    if layers is not None and (idle := config.per_layer_attributes - family.config_keys):
        raise MismatchError(f"per_layer_config: {config.model_type} has no {min(idle)} that differs between layers")
    sizes = {}
    for group in groups:
        name = group.name.removeprefix(prefix)
        if group.config_key and name in named:
            raise MismatchError(f"{PRUNED_GROUPS}: {name} has its size in per_layer_config, as {group.config_key}")
        size: Any = named.pop(name, group.size)
        if group.config_key and layers is not None:
            entry = getattr(layers[group.layer], group.config_key)
            size = group.size if entry is None else entry
        if not isinstance(size, int) or isinstance(size, bool) or not group.least <= size <= group.size:
            where = "per_layer_config" if group.config_key else PRUNED_GROUPS
            raise MismatchError(f"{where}: {group.name} has {group.size} units in the model, not {size}")
        sizes[group.name] = size
    stacks = [f"{stack.name}." for stack in family.stacks if stack.name]
    absent = tuple(s for s in stacks if not any(group.name.startswith(prefix + s) for group in groups))
    unknown = [name for name in named if not name.startswith(absent)]
    if unknown:
        raise MismatchError(f"{PRUNED_GROUPS}: the model has no group {min(unknown)!r}")
    return sizes


def write_widths(
    config: Any, family: Family, prefix: str, groups: Sequence[UnitGroup], kept: Mapping[str, int]
) -> None:
    """Note in `config` that `kept[name]` units of each of `groups` are left."""
    for group in groups:
        # A width left to its default is written out, since layers can only differ from a number.
        if group.config_key and vars(config)[group.config_key] is None and kept[group.name] < group.size:
            setattr(config, group.config_key, group.size)
    entries: dict[int, dict[str, int]] = {}
    named = dict(vars(config).get(PRUNED_GROUPS) or {})
    for group in groups:
        size = kept[group.name]
        if not group.config_key:
            if size < group.size:
                named[group.name.removeprefix(prefix)] = size
                if group.axis in HEAD_DIM_AXES:
                    # Set at all, it keeps generation from allocating caches before it knows what they will hold.
                    config.qk_head_dim = group.size * group.width
        # Read past transformers' guard, which refuses a global width while layers differ in it.
        elif vars(config)[group.config_key] not in (None, size):
            entries.setdefault(group.layer, {})[group.config_key] = size
    head_keys = family.head_keys
    if any(key in entry for entry in entries.values() for key in head_keys):
        # hidden_size // heads is wrong for a layer that lost heads; caches ask the config for head_dim first.
        config.head_dim = config.hidden_size // vars(config)[next(iter(head_keys))]
    if family.config_keys:
        config.per_layer_config = entries or None
        spell_out_layers(config, bool(entries))
    if named:
        setattr(config, PRUNED_GROUPS, named)


def spell_out_layers(config: Any, wanted: bool = True) -> None:
    """Let a saved config give its number of layers under transformers' own name too, or no longer.

    `Trainer` resumes by reading it as the base class of configs, which counts layers for their entries and knows no
    family's alias.
    """
    if "num_hidden_layers" in config.attribute_map:
        vars(config).pop("num_hidden_layers", None)
        if wanted:
            vars(config)["num_hidden_layers"] = config.num_hidden_layers


def twins(root: Any, model_type: str, prefix: str) -> list[Any]:
    """The configs inside that of the whole model that describe the member at `prefix`; they are what is saved.

    A member is often built from a copy. It is found by its model type; of several by the name of the member's path.
    """
    same = [(name, config) for name, config in configs_below(root) if config.model_type == model_type]
    if len(same) > 1:
        same = [(name, config) for name, config in same if name.removesuffix("_config") in prefix]
    return [config for _, config in same]


def configs_below(config: Any) -> Iterator[tuple[str, Any]]:
    """Configs inside a config, with the names of the attributes that hold them."""
    for name, value in getattr(config, "__dict__", {}).items():
        if hasattr(value, "model_type") and hasattr(value, "to_dict"):
            yield name, value
            yield from configs_below(value)
