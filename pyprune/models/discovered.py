"""Tables that discovery found, as plain data: a model's config holds them, so that a checkpoint needs nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from torch import nn

from pyprune.core.anatomy import Block
from pyprune.core.errors import MismatchError
from pyprune.models.attention import Attention
from pyprune.models.family import Family, Part, Stack
from pyprune.models.feed_forward import FeedForward
from pyprune.models.place import Place

# The attribute of a config with the table: `stacks`, each with `layers`, `name`, `tokens` and `parts`; whether the
# `hidden` width is an axis; a line of text that says what was `found`; and what `inputs` looked like, where the user
# gave them.
PRUNED_FAMILY = "pruned_family"


@dataclass(frozen=True)
class FoundAttention(Attention):
    """An attention of which one head stays: a forward that nobody read may not run without any.

    `label` ends the group's name, where a layer has several of one kind.
    """

    label: str = ""

    def block(self, place: Place) -> Block:
        """The block of the layer at `place`."""
        return _labelled(super().block(place), place, self.label)


@dataclass(frozen=True)
class FoundFeedForward(FeedForward):
    """A feed-forward block of which one neuron stays. `label` is as in `FoundAttention`."""

    label: str = ""

    def block(self, place: Place) -> Block:
        """The block of the layer at `place`."""
        return _labelled(super().block(place), place, self.label)


def _labelled(block: Block, place: Place, label: str) -> Block:
    name = f"{place.name}.{label}" if label else block.units.name
    return replace(block, units=replace(block.units, name=name, least=1))


_KINDS: dict[str, tuple[type[Part], tuple[str, ...]]] = {
    "attention": (FoundAttention, ("module", "output", "query", "key", "value", "fused")),
    "feed_forward": (FoundFeedForward, ("inner", "output")),
}


def found_line(model: Any) -> str:
    """What discovery said of `model`; empty for a model that has a table."""
    return str(vars(model.config).get(PRUNED_FAMILY, {}).get("found", ""))


def family_from(model_type: str, data: Any) -> Family:
    """The table that `data` describes; MismatchError when it describes none."""
    try:
        stacks = tuple(_stack(stack) for stack in data["stacks"])
    except (KeyError, TypeError, ValueError) as error:
        raise MismatchError(f"{PRUNED_FAMILY}: not a table of pyprune ({type(error).__name__}: {error})") from None
    return Family((model_type,), stacks, hidden=data.get("hidden") is True)


def _stack(data: Mapping[str, Any]) -> Stack:
    tokens = [None if count is None else float(count) for count in data["tokens"]]
    return Stack(
        layers=str(data["layers"]),
        parts=tuple(_part(part) for part in data["parts"]),
        name=str(data["name"]),
        tokens=lambda config, indices: tokens[indices[0]],
    )


def _part(data: Mapping[str, Any]) -> Part:
    kind, paths = _KINDS[data["kind"]]
    known = {field.name for field in fields(kind)} - {"when", "empty_"}
    values = {name: _frozen(value) for name, value in data.items() if name != "kind"}
    if unknown := sorted(values.keys() - known):
        raise ValueError(f"no {unknown[0]!r} in a {data['kind']}")
    needed = [path for name in paths for path in _listed(values.get(name, "")) if path]
    return kind(**values, exit=None, when=_has(needed))


def _frozen(value: Any) -> Any:
    """JSON's lists as the tuples that tables hold."""
    if isinstance(value, (list, tuple)):
        return tuple(_frozen(item) for item in value)
    if not isinstance(value, (str, int, bool)):
        raise TypeError(f"{value!r} is no part of a table")
    return value


def _listed(value: Any) -> tuple[str, ...]:
    return value if isinstance(value, tuple) else (value,)


def _has(paths: list[str]) -> Callable[[nn.Module], bool]:
    """Whether a layer holds modules at all of `paths`."""

    def when(layer: nn.Module) -> bool:
        held = {path for path, _ in layer.named_modules()}
        return held.issuperset(paths)

    return when
