"""The table of a stack's depth: what the config says about its layers, and how some of them are left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from torch import nn

from pyprune.core.anatomy import LayerGroup
from pyprune.core.units import Attribute, UnitCost, UnitGroup
from pyprune.models.place import Place
from pyprune.models.tokens import renumber_tokens
from pyprune.models.widths import PRUNED_GROUPS, spell_out_layers


@dataclass(frozen=True)
class Depth:
    """How layers of a stack are left out, so that the family's own config says what is left.

    - `key`: attribute of the config that counts the layers; with `staged` a list, which counts those of each stage;
    - `own_key`: that of the config of the module that holds the layers, where this is not the model's;
    - `lists`: attributes of the config with an entry for each layer, `indices` those that list numbers of layers;
    - `first`: layers at the front that have to stay, since they do what others rely on;
    - `counts`: further attributes of modules that count the layers, as paths from the base model on;
    - `refuses`: from a config, why its layers cannot be left out; empty when they can.
    """

    key: str
    own_key: str = ""
    lists: tuple[str, ...] = ("layer_types",)
    indices: tuple[str, ...] = ()
    first: int = 0
    staged: bool = False
    counts: tuple[str, ...] = ()
    refuses: Callable[[Any], str] | None = None

    def groups(self, places: Sequence[Place], base: str) -> Iterator[LayerGroup]:
        """The groups of a stack whose layers stand at `places`, in a base model at the path `base`: one a stage."""
        for path, some in groupby(places, key=lambda place: _list_of(place.path)):
            units = [place.path for place in some][self.first :]
            stack = next(place.stack for place in places if _list_of(place.path) == path)
            stage = f"stages.{_stage(path, places)}." if self.staged else ""
            attributes = tuple(Attribute(base + p, name) for p, _, name in (c.rpartition(".") for c in self.counts))
            group = UnitGroup(
                f"{stack}{stage}layers",
                axis="layers",
                layer=0,
                size=len(units),
                width=1,
                cuts=(),
                cost=UnitCost(0),
                attributes=attributes,
                least=0 if self.first else 1,
            )
            yield LayerGroup(group, tuple(units))

    def drop_(
        self, model: nn.Module, places: Sequence[Place], lost: frozenset[str], prefix: str, configs: Sequence[Any]
    ) -> None:
        """Take the layers at the paths `lost` out of the stack at `places`, and bring `configs` in line.

        Layers know their number, and configs name them by it: all of that moves up. `prefix` is the path of the model
        that the configs describe.
        """
        left = [place for place in places if place.path not in lost]
        positions: dict[str, int] = {}
        for path, some in groupby(left, key=lambda place: _list_of(place.path)):
            for number, place in enumerate(some):
                positions[place.path] = number
                for module in place.layer.modules():
                    if isinstance(vars(module).get("layer_idx"), int):
                        module.layer_idx = number
            owner, _, name = path.rpartition(".")
            layers = [place.layer for place in left if _list_of(place.path) == path]
            setattr(model.get_submodule(owner), name, nn.ModuleList(layers))
        names: dict[str, str | None] = {_relative(place, prefix): None for place in places}
        for place in left:
            names[_relative(place, prefix)] = _numbered(_relative(place, prefix), positions[place.path])
        numbers = {place.index: i for i, place in enumerate(left)}
        own = getattr(model.get_submodule(_list_of(places[0].path).rpartition(".")[0]), "config", None)
        if self.own_key and not any(own is config for config in configs):
            setattr(own, self.own_key, len(left))
        for config in configs:
            self._note(config, places, left, numbers)
            _rename(config, names)
            renumber_tokens(config, [place.index for place in left])

    def _note(self, config: Any, places: Sequence[Place], left: Sequence[Place], numbers: dict[int, int]) -> None:
        entries = None
        if getattr(config, "is_heterogeneous", False):
            entries = config._heterogeneity_spec.per_layer_overrides
            config.per_layer_config = None
        if self.staged:
            stages = [_list_of(place.path) for place in left]
            value: Any = [stages.count(stage) for stage in dict.fromkeys(_list_of(place.path) for place in places)]
        else:
            value = len(left)
        setattr(config, self.key, value)
        for name in self.lists:
            held = vars(config).get(name)
            if held is not None:
                setattr(config, name, [held[place.index] for place in left])
        for name in self.indices:
            setattr(config, name, [numbers[i] for i in vars(config).get(name) or () if i in numbers])
        if entries is not None:
            config.per_layer_config = {numbers[i]: entry for i, entry in entries.items() if i in numbers} or None
            spell_out_layers(config, config.is_heterogeneous)


def _list_of(layer_path: str) -> str:
    """Path of the list that holds a layer."""
    return layer_path.rpartition(".")[0]


def _stage(path: str, places: Sequence[Place]) -> int:
    return list(dict.fromkeys(_list_of(place.path) for place in places)).index(path)


def _relative(place: Place, prefix: str) -> str:
    return place.name.removeprefix(prefix)


def _numbered(name: str, number: int) -> str:
    return f"{name.rpartition('.')[0]}.{number}"


def _rename(config: Any, names: dict[str, str | None]) -> None:
    """Give the groups in `pruned_groups` the names of their layers' new places; those of lost layers go."""
    noted = vars(config).get(PRUNED_GROUPS)
    if not noted:
        return
    renamed = {}
    for group, size in noted.items():
        layer, _, kind = group.rpartition(".")
        if layer not in names:
            renamed[group] = size
        elif (place := names[layer]) is not None:
            renamed[f"{place}.{kind}"] = size
    if renamed:
        setattr(config, PRUNED_GROUPS, renamed)
    else:
        del vars(config)[PRUNED_GROUPS]
