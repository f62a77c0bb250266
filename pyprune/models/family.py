"""A model family as a table: stacks of layers, and what the blocks of a layer are."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pyprune.core.anatomy import Block
from pyprune.core.errors import InputError
from pyprune.models.place import Place

if TYPE_CHECKING:
    from pyprune.models.depth import Depth
    from pyprune.models.stage_widths import StageWidth
    from pyprune.models.tokens import Patches

# From a config and the indices of a layer: how many tokens; None where that follows from the length of the text.
Figure = Callable[[Any, tuple[int, ...]], float | None]


class Part:
    """The table of one part of a layer, such as `Attention` and `FeedForward`.

    `config_key` is the attribute of the config that counts the part's units layer by layer, or empty. `asked` names the
    axis that an anatomy must be asked for to have the part; empty where it always has it. `when` tells the layers that
    have the part; None: all.
    """

    config_key: str = ""
    asked: str = ""
    when: Callable[[nn.Module], bool] | None = None

    def asked_axes(self, layer: nn.Module) -> tuple[str, ...]:
        """Axes that an anatomy must be asked for and then has groups of in `layer`."""
        return (self.asked,) if self.asked else ()

    def block(self, place: Place) -> Block:
        """The part as a block of the layer at `place`."""
        raise NotImplementedError

    def cut(self, place: Place, kept: torch.Tensor) -> None:
        """Let the layer at `place` know that of this part's units only `kept` stay, where its tensors do not tell."""

    def emptied(self, place: Place) -> None:
        """Let the layer at `place` run when this part has lost all its units (after `cut`)."""

    def native(self, place: Place) -> dict[str, int]:
        """Attributes of the config that say this part's width, if all layers share it; empty where there are none."""
        return {}


@dataclass(frozen=True)
class Stack:
    """Layers of one kind, one after the other.

    `layers` is the path of their list below the base model; a `*` in it stands for every index of a list of lists.
    `parts` are the blocks of a layer, in the order in which the data passes them. `name` tells the stacks of a model
    apart. `tokens`, `keys`, `source_tokens`, `query_tokens` and `extra_tokens` give the figures of `Place` from the
    config and the indices of a layer, where they do not follow from the length of the text; None where they do.
    `pairs` says that a layer returns the hidden state and None. `depth` says how layers are left out; None:
    they cannot. `patches` says that the tokens are the patches of an image, and gives `tokens`; None: they are not.
    """

    layers: str
    parts: tuple[Part, ...]
    name: str = ""
    tokens: Figure | None = None
    keys: Figure | None = None
    source_tokens: Figure | None = None
    query_tokens: Figure | None = None
    extra_tokens: Figure | None = None
    pairs: bool = False
    depth: Depth | None = None
    patches: Patches | None = None

    def find(self, model: nn.Module, prefix: str) -> Iterator[Place]:
        """The layers of `model`, a transformers model at the path `prefix`; none when it lacks the stack."""
        for index, (indices, path, layer) in enumerate(_expand(model, base_path(model) + self.layers)):
            name = ".".join([*([self.name] if self.name else []), "layers", *map(str, indices)])
            tokens = self.patches.seen if self.patches else self.tokens
            asked = (tokens, self.keys, self.source_tokens, self.query_tokens, self.extra_tokens)
            figures = [figure and figure(model.config, indices) for figure in asked]
            yield Place(layer, prefix + path, prefix + name, index, *figures, pair=self.pairs)


@dataclass(frozen=True)
class Family:
    """Where the prunable parts of a family sit.

    `refused` lists config values that cannot be pruned exactly: attribute, value, reason. A model whose config holds
    the configs of other models needs no table for those: they are found by their own model types. `source_tokens` tells
    of such a model how many tokens the cross-attention of its member at a path reads; None: as many as the text has.
    `hidden` is False where no single vector runs through the model, or its forward reads the width from the config.
    `stage_widths` tells, of a model whose stages have a hidden width each, who writes and who reads these.
    `vocabulary` is False where more than a token is read in its number.
    """

    model_types: tuple[str, ...]
    stacks: tuple[Stack, ...] = ()
    refused: tuple[tuple[str, object, str], ...] = ()
    source_tokens: Callable[[nn.Module, str], float | None] | None = None
    hidden: bool = True
    stage_widths: Callable[[nn.Module], list[StageWidth]] | None = None
    vocabulary: bool = True

    def parts(
        self, model: nn.Module, prefix: str = "", source_tokens: float | None = None
    ) -> Iterator[tuple[Place, Part]]:
        """Every part of every layer of `model`, which stands at the path `prefix` (empty, or ending in a dot).

        `source_tokens` are those that its cross-attention reads, unless its own table tells. Nothing for a piece of a
        model that holds no layers. InputError when the config asks for something that cannot be pruned exactly.
        """
        places = [(place, stack) for stack in self.stacks for place in stack.find(model, prefix)]
        for attribute, value, reason in self.refused if places else ():
            if getattr(model.config, attribute, None) == value:
                raise InputError(f"{type(model).__name__} with {attribute}={value!r} cannot be pruned: {reason}")
        for place, stack in places:
            if place.source_tokens is None:
                place = replace(place, source_tokens=source_tokens)
            for part in stack.parts:
                if part.when is None or part.when(place.layer):
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


def base_path(model: nn.Module) -> str:
    """Path of the base model inside a task model, ending in a dot; empty for the base model itself."""
    base = getattr(model, "base_model_prefix", "")
    return f"{base}." if base and hasattr(model, base) else ""


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
