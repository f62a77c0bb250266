"""Hidden widths of models whose stages have one each: the channels that the layers of a stage hand on to each other.

All that writes or reads them is cut together: stem, shortcuts, norms, the first layers of the next stage, task heads.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from pyprune.core.anatomy import Anatomy, Block, HiddenGroup
from pyprune.core.units import Cut, UnitCost, UnitGroup
from pyprune.models.hidden import HIDDEN

_NORM_TENSORS = ("weight", "bias", "running_mean", "running_var")


@dataclass
class StageWidth:
    """Who writes and who reads the channels of one stage. All paths start at the whole model.

    `name` begins the group's name. `config_keys` are where the config says the width: an attribute, or an item of one
    (`hidden_sizes.0`). `features` are the stages of a backbone, counted from the stem, whose maps have this width, and
    `stages` the paths of those in whose layers the config derives all other widths from it.

    The channels are outputs of the layers `written`, and inputs of the layers `read`: convolutions and linear layers,
    each with the positions at which it is applied. `along` are the paths of norms, and of tensors with an entry for
    each channel.
    """

    name: str
    config_keys: tuple[str, ...]
    features: tuple[int, ...]
    stages: tuple[str, ...] = ()
    written: dict[str, float] = field(default_factory=dict)
    read: dict[str, float] = field(default_factory=dict)
    along: list[str] = field(default_factory=list)

    def dense(self, config: Any) -> int:
        """The width by the config, which is the dense model's."""
        name, _, index = self.config_keys[0].partition(".")
        value = getattr(config, name)
        return value[int(index)] if index else value

    def size(self, model: nn.Module) -> int:
        """The width that `model` has now."""
        return len(_tensor(model, f"{next(iter(self.written))}.weight"))

    def group(self, model: nn.Module, size: int) -> HiddenGroup:
        """The width as a group of `size`, without its cost; what has another size already is left out of the cuts."""
        cuts = tuple(cut for cut in self._cuts(model) if _tensor(model, cut.tensor).shape[cut.dim] == size)
        norms = tuple(path for path in self.along if isinstance(_module(model, path), nn.LayerNorm))
        return HiddenGroup(UnitGroup(f"{self.name}.{HIDDEN}", HIDDEN, 0, size, 1, cuts, UnitCost(0), least=1), norms)

    def _cuts(self, model: nn.Module) -> Iterator[Cut]:
        for path in self.written:
            yield Cut(f"{path}.weight", 0)
            if model.get_submodule(path).bias is not None:
                yield Cut(f"{path}.bias", 0)
        for path in self.read:
            yield Cut(f"{path}.weight", 1)
        for path in self.along:
            module = _module(model, path)
            leaves = [leaf for leaf in _NORM_TENSORS if getattr(module, leaf, None) is not None]
            yield from (Cut(f"{path}.{leaf}", 0) for leaf in leaves) if module is not None else (Cut(path, 0),)


def with_stage_widths(model: nn.Module, anatomy: Anatomy, widths: Sequence[StageWidth]) -> Anatomy:
    """`anatomy` with a group for each of `widths`.

    A weight between the units of two groups is shared by them: each counts half, and less as the other's go.
    """
    found = [width.group(model, width.size(model)) for width in widths]
    positions = {f"{path}.weight": at for w in widths for path, at in (*w.written.items(), *w.read.items())}
    sides: dict[str, dict[int, str]] = defaultdict(dict)
    for group in (*(block.units for block in anatomy.blocks), *(width.units for width in found)):
        for cut in group.cuts:
            sides[cut.tensor][cut.dim] = group.name
    own = {group.units.name for group in found}
    blocks = tuple(_sharing(model, block, sides, own, positions) for block in anatomy.blocks)
    priced = []
    for width, group in zip(widths, found, strict=True):
        inside = tuple(f"{path}." for path in width.stages)
        inner = tuple(block.units.name for block in blocks if block.layer_path.startswith(inside))
        units = replace(group.units, cost=_cost(model, group.units, sides, positions))
        priced.append(replace(group, units=units, inner=inner))
    return replace(anatomy, blocks=blocks, stage_widths=tuple(priced))


def under_construction(model: Any, widths: Iterable[StageWidth]) -> tuple[HiddenGroup, ...]:
    """The groups of a model that is being built, parts of which may be cut already."""
    return tuple(width.group(model, width.dense(model.config)) for width in widths)


def note_features_(model: Any, widths: Iterable[StageWidth]) -> None:
    """Let a backbone that was cut tell others the widths of its feature maps."""
    for width in widths:
        for stage in width.features:
            model.num_features[stage] = width.size(model)


def native_widths(model: Any, widths: Iterable[StageWidth]) -> dict[str, Any]:
    """Attributes of the config that say the widths of `model`, with their values."""
    values: dict[str, Any] = {}
    for width in widths:
        for key in width.config_keys:
            name, _, index = key.partition(".")
            if index:
                values.setdefault(name, list(getattr(model.config, name)))[int(index)] = width.size(model)
            else:
                values[name] = width.size(model)
    return values


def _sharing(
    model: nn.Module, block: Block, sides: dict[str, dict[int, str]], widths: set[str], positions: dict[str, float]
) -> Block:
    """`block` with half of the weights that lie between its units and a width."""
    cost = block.units.cost
    params, key_params, shared = cost.params, cost.key_params, list(cost.shared)
    for cut in block.units.cuts:
        for dim, other in sides[cut.tensor].items():
            if dim != cut.dim and other in widths:
                tensor = _tensor(model, cut.tensor)
                half = tensor.numel() / max(tensor.shape[cut.dim], 1) / 2
                shared.append((other, half, positions[cut.tensor]))
                params -= half
                # What makes the units is applied at the positions of the keys, what reads them at those of the tokens.
                key_params -= half if cut.dim == 0 else 0
    cost = replace(cost, params=params, key_params=key_params, shared=tuple(shared))
    return replace(block, units=replace(block.units, cost=cost))


def _cost(
    model: nn.Module, group: UnitGroup, sides: dict[str, dict[int, str]], positions: dict[str, float]
) -> UnitCost:
    """Cost of one channel; its weights are applied at different positions, of which the cost has the mean."""
    params, macs, shared = 0.0, 0.0, []
    for cut in group.cuts:
        tensor = _tensor(model, cut.tensor)
        if tensor.dim() > 1:
            weights = tensor.numel() / tensor.shape[cut.dim]
            others = [other for dim, other in sides[cut.tensor].items() if dim != cut.dim]
            for other in others:
                weights /= 2
                shared.append((other, weights, positions[cut.tensor]))
            params += weights
            macs += weights * positions[cut.tensor]
    return UnitCost(params, tokens=macs / params, shared=tuple(shared))


def _module(model: nn.Module, path: str) -> nn.Module | None:
    """The module at `path`, or None where it is a tensor."""
    owner, _, leaf = path.rpartition(".")
    return model.get_submodule(owner)._modules.get(leaf)


def _tensor(model: nn.Module, name: str) -> Any:
    path, _, leaf = name.rpartition(".")
    return getattr(model.get_submodule(path), leaf)
