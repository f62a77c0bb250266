"""What can be pruned in a model, in words that no model family owns: blocks, and what stands beside them.

A transformer layer is two or more *blocks*: attention, cross-attention, feed-forward. Each ends in an output projection
that writes to the residual stream, and its *units* (heads, KV groups, neurons, experts) are slices of the tensors in
front of it. A `Block` says where these sit in the module tree; everything above works on blocks and never asks for a
family's name. Groups of `MODEL_AXES` belong to no block: whole layers, the hidden width, the tokens of an image, the
vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import nn

from pyprune.core.errors import InputError
from pyprune.core.units import Cut, UnitCost, UnitGroup, group_kind

Site = Literal["projection", "convolution", "router", "tensor", "weights"]
# What works wherever units have masks, which everything but the hidden width has.
_BY_MASKS = 'use recipe="kwon" (--recipe kwon), criterion="fisher" and tuning="none"'


@dataclass(frozen=True)
class SharedUnits:
    """What several units of a block share and what goes with the last of these: the key/value heads of query heads.

    Unit `u` of the block has a part in unit `of[u]` of `units`, which no plan names.
    """

    units: UnitGroup
    of: tuple[int, ...]

    def kept(self, kept: torch.Tensor) -> torch.Tensor:
        """The units in which those that the block keeps have a part: sorted int64."""
        return torch.tensor(self.of, dtype=torch.int64, device="cpu")[kept].unique()


@dataclass(frozen=True)
class Block:
    """One attention or feed-forward part of a layer, and how to run it alone.

    With `h` the hidden state that enters the block and `x` `[B, T, size * width]` the input of its output projection:

    - `x` is found by running `entry` on `h` up to the projection; an empty `entry` means the layer itself, whose own
      call arguments (masks, positions) it needs: the case of attention;
    - the residual stream behind the block is `h + projection(x)`;
    - the next block's `h` is that stream after the modules of `exit` (post-norm families: the norm).

    Where a family does anything else between two blocks, `exit` is None: it cannot be run block by block.
    All names are dotted paths from the model's root.

    `site` says where a mask acts, if not at the last dimension of the projection's input:

    - `convolution`: `projection` is one, and its input is masked along the channels `[B, C, H, W]`.

    Routed experts have no such layer:

    - `router`: `projection` is the module that chooses among the units. A unit whose mask is 0 is not chosen, as if the
      router had no row for it; the output of any other is multiplied by its mask.
    - `tensor`: `projection` is a tensor that holds the projections of all experts, whose entries of a unit are
      multiplied by its mask.

    Dimensions of heads lie across all of them:

    - `weights`: the entries of `masked` that belong to a unit are multiplied by its mask, and the `norms` over these
      dimensions take the others alone. `projection` is the output projection of the heads.

    `shared` are units that those of the block share; their cost is not in that of the block's.
    """

    layer_path: str
    projection: str
    entry: tuple[str, ...]
    exit: tuple[str, ...] | None
    units: UnitGroup
    site: Site = "projection"
    masked: tuple[Cut, ...] = ()
    norms: tuple[Cut, ...] = ()
    shared: SharedUnits | None = None

    @property
    def cuts(self) -> tuple[Cut, ...]:
        """Every dimension that shrinks with the block."""
        return (*self.units.cuts, *(self.shared.units.cuts if self.shared else ()))


@dataclass(frozen=True)
class LayerGroup:
    """The layers of one stack that can be left out: unit `u` is the layer at `layers[u]`.

    A layer whose mask is 0 hands on the hidden state that it was given. Its cost is that of its blocks.
    """

    units: UnitGroup
    layers: tuple[str, ...]


@dataclass(frozen=True)
class HiddenGroup:
    """The hidden width: one unit is an entry of the vector that runs through the whole model, or through a stage.

    `units.cuts` are all its dimensions in parameters and buffers. `norms` are the paths of the norms over it: what is
    left is normalised by its own mean and variance, as if there had never been more. `inner` are the groups whose sizes
    a family's config derives from the width of a stage.
    """

    units: UnitGroup
    norms: tuple[str, ...]
    inner: tuple[str, ...] = ()


@dataclass(frozen=True)
class TokenGroup:
    """The tokens of an image that the layer at the path `layer` sees: unit `u` is the patch at `positions[u]`.

    Positions count the patches of the whole image, row by row. The `first` tokens in front of them are no patches
    (class and distillation tokens), and stay. A token whose mask is 0 is gone from this layer on.
    """

    units: UnitGroup
    layer: str
    positions: tuple[int, ...]
    first: int


@dataclass(frozen=True)
class VocabularyGroup:
    """The vocabulary: one unit is a token, by its number.

    `units.cuts` are the rows of embeddings, output heads and their biases. The modules at the paths `embeddings` look
    tokens up. `needed` tokens stay in any case. `parts[t]` are the tokens that a tokenizer makes token `t` of, each
    after its own parts.
    """

    units: UnitGroup
    embeddings: tuple[str, ...]
    needed: frozenset[int]
    parts: Mapping[int, tuple[int, ...]] = field(default_factory=dict)

    def closed(self, tokens: Iterable[int]) -> list[int]:
        """What is needed and then `tokens` in their order, each behind its parts: what stays along with them."""
        found: dict[int, None] = {}
        for token in (*sorted(self.needed), *tokens):
            found |= dict.fromkeys((*self.parts.get(token, ()), token))
        return list(found)


@dataclass(frozen=True)
class Anatomy:
    """Blocks of a model in the order in which the data passes them, and the groups of other axes that were asked for.

    `layers` are the paths of the layers; those in `pairs` return the hidden state and None, the others it alone.
    `hidden` is the one vector that all blocks read and write. Where every stage has one of its own, they are
    `stage_widths`, which cost what is cut with them, stem and task head included.
    """

    model_type: str
    layers: tuple[str, ...]
    blocks: tuple[Block, ...]
    pairs: frozenset[str] = frozenset()
    layer_groups: tuple[LayerGroup, ...] = ()
    hidden: HiddenGroup | None = None
    stage_widths: tuple[HiddenGroup, ...] = ()
    token_groups: tuple[TokenGroup, ...] = ()
    vocabulary: VocabularyGroup | None = None

    @property
    def groups(self) -> tuple[UnitGroup, ...]:
        beyond = (*self.layer_groups, *self.widths, *self.token_groups, self.vocabulary)
        return (*(block.units for block in self.blocks), *(group.units for group in beyond if group))

    @property
    def all_groups(self) -> tuple[UnitGroup, ...]:
        """`groups`, and those that share among their units."""
        return (*self.groups, *(block.shared.units for block in self.blocks if block.shared))

    def complete(self, kept: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The units of `all_groups` that stay when `kept[name]` stay of every group."""
        shared = ((block.units.name, block.shared) for block in self.blocks if block.shared)
        return {**kept, **{one.units.name: one.kept(kept[name]) for name, one in shared if name in kept}}

    @property
    def widths(self) -> tuple[HiddenGroup, ...]:
        """The hidden widths: none, one, or one for every stage."""
        return ((self.hidden,) if self.hidden else ()) + self.stage_widths

    def lost_layers(self, kept: Mapping[str, torch.Tensor]) -> frozenset[str]:
        """Paths of the layers that are left out when the units `kept[name]` of every group stay (default: all)."""
        lost = set()
        for group in self.layer_groups:
            if group.units.name in kept:
                lost |= set(group.layers) - {group.layers[unit] for unit in kept[group.units.name].tolist()}
        return frozenset(lost)

    def counts(self, kept: Mapping[str, torch.Tensor]) -> dict[str, int]:
        """How many units of `all_groups` are there when `kept[name]` stay: none of a layer that is left out."""
        lost = self.lost_layers(kept)
        counts = {name: len(units) for name, units in self.complete(kept).items()}
        before: dict[str, int] = {}
        for group in self.token_groups:  # a layer that is left out lets no tokens go
            kind = group_kind(group.units)
            if group.layer in lost:
                counts[group.units.name] = before.get(kind, group.units.size)
            before[kind] = counts[group.units.name]
        for block in self.blocks:
            if block.layer_path in lost:
                counts[block.units.name] = 0
                counts |= {block.shared.units.name: 0} if block.shared else {}
        return counts

    def tokens_seen(self, kept: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
        """`{group: positions of the patches that its layer sees}` when the units `kept[name]` of every group stay.

        InputError for a layer that keeps what a layer before it does not: tokens that are gone do not come back.
        """
        seen: dict[str, tuple[int, ...]] = {}
        before: dict[str, UnitGroup] = {}
        for group in self.token_groups:
            name, kind = group.units.name, group_kind(group.units)
            seen[name] = tuple(group.positions[unit] for unit in kept[name].tolist())
            if kind in before and (back := set(seen[name]) - set(seen[before[kind].name])):
                raise InputError(
                    f"plan: {name} keeps the patch at position {min(back)}, which {before[kind].name} does not: "
                    "tokens that are gone from one layer are gone from all that follow"
                )
            before[kind] = group.units
        return seen

    def block(self, group_name: str) -> Block:
        """The block whose unit group is called `group_name`; KeyError names the known ones."""
        for block in self.blocks:
            if block.units.name == group_name:
                return block
        raise KeyError(f"{group_name!r} is no unit group; the model has {', '.join(g.name for g in self.groups)}")

    def flops(self, length: float, kept: Mapping[str, int] | None = None) -> float:
        """FLOPs of the prunable blocks for one sequence of `length` tokens, with `kept[name]` units (default: all).

        `kept` names `all_groups`, as `counts` does. Output heads count when the vocabulary was asked for.
        """
        kept = self._sizes if kept is None else kept
        width = self._width_left(kept)
        gone = sum(2.0 * (tokens or length) * weights for weights, tokens in self._shared_gone(kept))
        units = (
            self.cost_left(cost, kept).flops(length, width)
            * self._counted(group, cost, kept)
            * self._experts_left(cost, kept)[0]
            for group, cost in self._costs
        )
        return sum(units) - gone

    def params(self, kept: Mapping[str, int] | None = None) -> int:
        """Weights of the prunable blocks with `kept[name]` units a group (default: all); biases not counted.

        Embeddings and output heads count when the vocabulary was asked for.
        """
        kept = self._sizes if kept is None else kept
        gone = sum(weights for weights, _ in self._shared_gone(kept))
        units = sum(
            cost.params * self._counted(group, cost, kept) * self._experts_left(cost, kept)[1]
            for group, cost in self._costs
        )
        return round(units * self._width_left(kept) - gone)

    def cost_left(self, cost: UnitCost, kept: Mapping[str, int]) -> UnitCost:
        """`cost` when `kept[name]` units of every group stay, with the tokens of an image that are left."""
        gone = self._sizes[cost.image] - kept[cost.image] if cost.image else 0
        return cost.without(gone) if gone else cost

    def need_blocks(self, purpose: str) -> None:
        """InputError when there is a group that belongs to no block, where `purpose` needs one."""
        self.need_masks(purpose)
        for group in self.groups[len(self.blocks) :]:
            raise InputError(f"{purpose}: not possible for the axis {group.axis}; {_BY_MASKS}")

    def need_masks(self, purpose: str) -> None:
        """InputError when there is a hidden width, where `purpose` needs units whose mask multiplies one thing."""
        for width in self.widths:
            raise InputError(
                f"{purpose}: not possible for the axis {width.units.axis}; use a criterion that reads weights alone "
                '(recipe="kwon", criterion="magnitude" or "random")'
            )

    def need_projections(self, purpose: str) -> None:
        """InputError when there is a block without an output projection of its own, which `purpose` needs."""
        for block in self.blocks:
            if block.site != "projection":
                why = "its channels end in a convolution"
                if block.site != "convolution":
                    why = "routed experts have no output projections of their own"
                if block.site == "weights":
                    why = "its units are no channels of a projection"
                raise InputError(f"{purpose}: not possible for {block.units.name}, since {why}; {_BY_MASKS}")

    @property
    def _sizes(self) -> dict[str, int]:
        return {group.name: group.size for group in self.all_groups}

    @property
    def _costs(self) -> Iterator[tuple[UnitGroup, UnitCost]]:
        for group in self.all_groups:
            cost: UnitCost | None = group.cost
            while cost:
                yield group, cost
                cost = cost.also

    def _counted(self, group: UnitGroup, cost: UnitCost, kept: Mapping[str, int]) -> float:
        """Units of `group` that take `cost`; less than none of those that other units' costs hold already."""
        if not cost.within:
            return kept[group.name]
        holding = cost.within
        return (kept[group.name] - group.size) * kept[holding] / max(self._sizes[holding], 1)

    def _width_left(self, kept: Mapping[str, int]) -> float:
        """Share of the hidden width that is left."""
        return kept[self.hidden.units.name] / self.hidden.units.size if self.hidden else 1.0

    def _shared_gone(self, kept: Mapping[str, int]) -> Iterator[tuple[float, float | None]]:
        """Weights between units that stay and units of other groups that do not, and the tokens that pass them."""
        for group in self.groups:
            for other, weights, tokens in group.cost.shared:
                yield weights * kept[group.name] * (1 - kept[other] / max(self._sizes[other], 1)), tokens

    def _experts_left(self, cost: UnitCost, kept: Mapping[str, int]) -> tuple[float, float]:
        """Shares of the experts of a unit that are still passed by a token, and that are still there."""
        if not cost.experts:
            return 1.0, 1.0
        size, left = self._sizes[cost.experts], kept[cost.experts]
        return min(cost.chosen, left) / min(cost.chosen, size), left / size


class Adapter(Protocol):
    """What pyprune has to know about a model. The tables in `pyprune/models/` give it for each family."""

    def anatomy(self, model: nn.Module, axes: Sequence[str] | None = None) -> Anatomy:
        """Blocks and unit groups of `model` as it stands now (a pruned model included).

        Groups of `ASKED_AXES` are there for those that `axes` names; InputError for an axis that `model` lacks.
        """
        ...

    def resized(self, model: nn.Module, anatomy: Anatomy, kept: Mapping[str, torch.Tensor]) -> None:
        """Bring derived attributes, the config and emptied blocks in line with the cut weights.

        `anatomy` is the one from before the cut, `kept[name]` the kept unit indices of every group.
        """
        ...
