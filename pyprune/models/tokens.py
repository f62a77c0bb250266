"""The tokens of an image: how many patches each layer sees, and how the others are left out.

Which patches stay is the same for every image. The config notes it as `pruned_tokens`, the layers hold it as forward
pre-hooks: nothing of it is in the state dict. A buffer would not do, since transformers fills anew what it does not
find in a checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from pyprune.core.anatomy import Block, TokenGroup
from pyprune.core.errors import InputError, MismatchError
from pyprune.core.units import UnitCost, UnitGroup
from pyprune.models.family import base_path
from pyprune.models.images import pair, patches
from pyprune.models.place import Place

PRUNED_TOKENS = "pruned_tokens"
TOKENS = "tokens"

# Heads that lay the tokens out as a picture, by how their classes are called.
_GRIDS = ("ForMaskedImageModeling", "Backbone")


@dataclass(frozen=True)
class Patches:
    """The table of a stack whose tokens are the patches of an image.

    `first` tokens stand in front of them. `embeddings` is the path from the base model of the module that is given the
    image. `within` are the types of models that hold such a stack and take any number of tokens from it, besides those
    of the stack's own type.
    """

    first: int = 0
    embeddings: str = "embeddings"
    within: tuple[str, ...] = ()

    def seen(self, config: Any, indices: tuple[int, ...]) -> int:
        """Tokens that a layer sees."""
        return self.first + len(positions(config, indices[0]))

    def left(self, config: Any) -> int:
        """Tokens that come out of the last layer."""
        return self.first + len(positions(config))

    def check(self, whole: Any, model: Any) -> None:
        """InputError when `whole`, which holds `model` or is it, needs all tokens."""
        reason = ""
        if type(whole).__name__.endswith(_GRIDS):
            reason = "it puts the tokens of the whole image back together"
        elif whole is not model and whole.config.model_type not in self.within:
            reason = f"{type(model).__name__} inside it must put out the tokens of the whole image"
        if reason:
            raise InputError(f"axis {TOKENS!r} of {type(whole).__name__}: {reason}")

    def groups(self, places: Sequence[Place], config: Any) -> Iterator[TokenGroup]:
        """The tokens that each of the layers at `places` sees."""
        for place in places:
            seen = positions(config, place.index)
            name = f"{place.name}.{TOKENS}"
            units = UnitGroup(name, TOKENS, place.index, len(seen), 1, cuts=(), cost=UnitCost(0), least=1)
            yield TokenGroup(units, place.path, seen, self.first)


def positions(config: Any, layer: int | None = None) -> tuple[int, ...]:
    """The patches of an image that the layer of this number sees; None: those that come out of the last.

    MismatchError for a note that cannot be true.
    """
    seen = tuple(range(patches(config)))
    for number, kept in _noted(config).items():
        if layer is None or number <= layer:
            seen = kept
    return seen


def note_tokens(config: Any, seen: Sequence[tuple[int, ...]]) -> None:
    """Note in `config` that layer `i` sees the patches at `seen[i]`: an entry for each layer that loses some."""
    before = (tuple(range(patches(config))), *seen)
    noted = {str(i): list(mine) for i, mine in enumerate(seen) if mine != before[i]}
    if noted:
        setattr(config, PRUNED_TOKENS, noted)
    else:
        vars(config).pop(PRUNED_TOKENS, None)


def renumber_tokens(config: Any, left: Sequence[int]) -> None:
    """Bring the note in `config` in line when of the layers only those at the numbers `left` stay."""
    if vars(config).get(PRUNED_TOKENS):
        note_tokens(config, [positions(config, number) for number in left])


def read_by(blocks: Sequence[Block], groups: Sequence[TokenGroup]) -> Iterator[Block]:
    """`blocks`, of which those know whose tokens `groups` are or which read what comes out of the last layer."""
    names = {group.layer: group.units.name for group in groups}
    for block in blocks:
        cost = block.units.cost
        reads = block.layer_path not in names and cost.key_params and cost.keys
        image = groups[-1].units.name if reads else names.get(block.layer_path, "")
        yield replace(block, units=replace(block.units, cost=replace(cost, image=image)))


class KeepTokens:
    """Forward pre-hook that hands a layer the tokens which it sees, and the part of the attention mask that is theirs.

    `entering` are those among the tokens that come from the layer before, `seen` the same among all of the image.
    """

    def __init__(self, entering: Sequence[int], seen: Sequence[int]) -> None:
        self.entering, self.seen = list(entering), list(seen)
        self._move(torch.device("cpu"))

    def __call__(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        hidden = args[0] if args else kwargs["hidden_states"]
        if self._entering.device != hidden.device:
            self._move(hidden.device)
        hidden = hidden.index_select(1, self._entering)
        args, kwargs = ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})
        if len(args) > 1:
            return (args[0], self._masked(args[1]), *args[2:]), kwargs
        mask = {"attention_mask": self._masked(kwargs["attention_mask"])} if "attention_mask" in kwargs else {}
        return args, {**kwargs, **mask}

    def _masked(self, mask: Any) -> Any:
        """`[B, T]` or `[B, 1, T or 1, T]` for the tokens of the whole image, cut to those that are seen."""
        if not isinstance(mask, torch.Tensor):
            return mask
        if mask.dim() > 2 and mask.shape[-2] > 1:
            mask = mask.index_select(-2, self._seen)
        return mask.index_select(-1, self._seen)

    def _move(self, device: torch.device) -> None:
        # From the lists, not from the tensors: those may have been on "meta".
        self._entering = torch.tensor(self.entering, device=device)
        self._seen = torch.tensor(self.seen, device=device)


class OneSize:
    """Forward pre-hook of the module that takes the image: positions mean something at one size only."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        height, width = (args[0] if args else kwargs["pixel_values"]).shape[-2:]
        if (height, width) != self.size:
            raise InputError(
                f"an image of {height} x {width}: this model lost tokens by their positions in images of "
                f"{self.size[0]} x {self.size[1]}, and takes no others"
            )


def install_tokens(whole: Any, model: Any, table: Patches, places: Sequence[Place]) -> None:
    """Let the layers at `places`, a stack of `model`, see the tokens that its config notes; all of them without a note.

    MismatchError for a note that cannot be true, InputError when `whole`, the model that holds it, needs all tokens.
    """
    config = model.config
    embeddings = model.get_submodule(base_path(model) + table.embeddings)
    for module in (embeddings, *(place.layer for place in places)):
        _remove_hooks(module)
    if not vars(config).get(PRUNED_TOKENS):
        return
    if (last := max(_noted(config))) >= len(places):
        raise MismatchError(f"{PRUNED_TOKENS}: there is no layer {last}, the model has {len(places)}")
    table.check(whole, model)
    embeddings.register_forward_pre_hook(OneSize(pair(config.image_size)), with_kwargs=True)
    everything = before = positions(config, -1)
    first = range(table.first)
    for place in places:
        seen = positions(config, place.index)
        if seen != everything:
            order = {position: table.first + i for i, position in enumerate(before)}
            hook = KeepTokens(
                [*first, *(order[position] for position in seen)],
                [*first, *(table.first + position for position in seen)],
            )
            place.layer.register_forward_pre_hook(hook, with_kwargs=True)
        before = seen


def _remove_hooks(module: nn.Module) -> None:
    for key, hook in list(module._forward_pre_hooks.items()):
        if isinstance(hook, (KeepTokens, OneSize)):
            del module._forward_pre_hooks[key]
            module._forward_pre_hooks_with_kwargs.pop(key, None)


def _noted(config: Any) -> dict[int, tuple[int, ...]]:
    """The config's note: by the numbers of layers that lose patches, in order, those that they see.

    MismatchError unless each sees fewer than the one before it.
    """
    noted = vars(config).get(PRUNED_TOKENS) or {}
    numbered = isinstance(noted, Mapping) and all(str(number).isdecimal() for number in noted)
    if not numbered or not all(isinstance(kept, list) and kept for kept in noted.values()):
        raise MismatchError(f"{PRUNED_TOKENS}: expected positions by the numbers of layers, found {noted!r:.60}")
    before = set(range(patches(config)))
    found = {}
    for number in sorted(map(int, noted)):
        kept = noted[str(number)]
        if not all(isinstance(p, int) and 0 <= p < patches(config) for p in kept) or kept != sorted(set(kept)):
            raise MismatchError(
                f"{PRUNED_TOKENS}: layer {number} must keep positions below {patches(config)} in order, found "
                f"{kept!r:.60}"
            )
        if back := set(kept) - before:
            raise MismatchError(f"{PRUNED_TOKENS}: layer {number} keeps position {min(back)}, which is gone before it")
        before, found[number] = set(kept), tuple(kept)
    return found
