"""A model family as a table: stacks of layers, and what the blocks of a layer are."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from pyprune.core.anatomy import Block
from pyprune.core.errors import InputError
from pyprune.models.place import Place


class Part(Protocol):
    """The table of one part of a layer, such as `Attention` and `FeedForward`.

    `config_key` is the attribute of the config that counts the part's units layer by layer, or empty.
    """

    config_key: str

    def block(self, place: Place) -> Block:
        """The part as a block of the layer at `place`."""
        ...

    def emptied(self, place: Place) -> None:
        """Let the layer at `place` run when this part has lost all its units."""
        ...

    def native(self, place: Place) -> dict[str, int]:
        """Attributes of the config that say this part's width, if all layers share it; empty when it has none."""
        ...


@dataclass(frozen=True)
class Stack:
    """Layers of one kind, one after the other.

    `layers` is the path of their list below the base model; a `*` in it stands for every index of a list of lists.
    `parts` are the blocks of a layer, in the order in which the data passes them. `name` tells the stacks of a model
    apart. `tokens`, `keys` and `source_tokens` give the figures of `Place` from the config and the indices of a layer,
    where they do not follow from the length of the text.
    """

    layers: str
    parts: tuple[Part, ...]
    name: str = ""
    tokens: Callable[[Any, tuple[int, ...]], float] | None = None
    keys: Callable[[Any, tuple[int, ...]], float] | None = None
    source_tokens: Callable[[Any, tuple[int, ...]], float] | None = None

    def find(self, model: nn.Module, prefix: str) -> Iterator[Place]:
        """The layers of `model`, a transformers model at the path `prefix`; none when it lacks the stack."""
        base = getattr(model, "base_model_prefix", "")
        below = f"{base}.{self.layers}" if base and hasattr(model, base) else self.layers
        for index, (indices, path, layer) in enumerate(_expand(model, below)):
            name = ".".join(["layers", *map(str, indices)])
            figures = [f and f(model.config, indices) for f in (self.tokens, self.keys, self.source_tokens)]
            yield Place(layer, prefix + path, prefix + (f"{self.name}." if self.name else "") + name, index, *figures)


@dataclass(frozen=True)
class Family:
    """Where the prunable parts of a family sit.

    `refused` lists config values that cannot be pruned exactly: attribute, value, reason. A model whose config holds
    the configs of other models needs no table for those: they are found by their own model types.
    """

    model_types: tuple[str, ...]
    stacks: tuple[Stack, ...] = ()
    refused: tuple[tuple[str, object, str], ...] = ()

    def parts(self, model: nn.Module, prefix: str = "") -> Iterator[tuple[Place, Part]]:
        """Every part of every layer of `model`, which stands at the path `prefix` (empty, or ending in a dot).

        Nothing for a piece of a model that holds no layers. InputError when the config asks for something that cannot
        be pruned exactly.
        """
        for attribute, value, reason in self.refused:
            if getattr(model.config, attribute, None) == value:
                raise InputError(f"{type(model).__name__} with {attribute}={value!r} cannot be pruned: {reason}")
        for stack in self.stacks:
            for place in stack.find(model, prefix):
                for part in stack.parts:
                    yield place, part

    @property
    def config_keys(self) -> frozenset[str]:
        """Attributes of the config that hold widths layer by layer."""
        return frozenset(part.config_key for stack in self.stacks for part in stack.parts if part.config_key)

    @property
    def head_keys(self) -> frozenset[str]:
        """Those of `config_keys` from which the family computes the size of a head."""
        parts = [part for stack in self.stacks for part in stack.parts]
        return frozenset(part.config_key for part in parts if getattr(part, "derives_head_dim", False))


def _expand(root: nn.Module, pattern: str) -> Iterator[tuple[tuple[int, ...], str, nn.Module]]:
    """Items of the lists that `pattern` leads to, with their indices and paths; none when a path is not there."""
    found: list[tuple[tuple[int, ...], str]] = [((), "")]
    for names in re.split(r"\.\*\.", f"{pattern}.*."):
        if not names:
            break
        found = [
            ((*indices, i), f"{path}{names}.{i}.")
            for indices, path in found
            for i in range(len(_submodule(root, path + names) or ()))
        ]
    for indices, path in found:
        yield indices, path[:-1], root.get_submodule(path[:-1])


def _submodule(root: nn.Module, path: str) -> nn.Module | None:
    try:
        return root.get_submodule(path)
    except AttributeError:
        return None
