"""What can be pruned in a model, in words that no model family owns: blocks, unit groups, cuts and costs.

A transformer layer is two or more *blocks*: attention, cross-attention, feed-forward. Each ends in an output projection
that writes to the residual stream, and its *units* (heads, KV groups, neurons, experts) are slices of the tensors in
front of it. A `Block` says where these sit in the module tree; everything above works on blocks and never asks for a
family's name. Groups of `MODEL_AXES` belong to no block: whole layers, the hidden width, the tokens of an image, the
vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, get_args

import torch
from torch import nn

from pyprune.core.errors import InputError

BlockAxis = Literal["heads", "kv_groups", "query_heads", "qk_dims", "vo_dims", "neurons", "experts", "channels"]
ModelAxis = Literal["layers", "hidden", "tokens", "vocab"]
Axis = BlockAxis | ModelAxis
Site = Literal["projection", "convolution", "router", "tensor", "weights"]

# The dimensions of a head: those in which queries meet keys, and those of values.
HEAD_DIM_AXES = ("qk_dims", "vo_dims")
# Heads one by one where several read one key/value head: they take the place of the KV groups.
QUERY_HEADS = "query_heads"
# Axes whose groups belong to no block.
MODEL_AXES = get_args(ModelAxis)
# An anatomy has the groups of these only if they are asked for.
ASKED_AXES = (QUERY_HEADS, *HEAD_DIM_AXES, *MODEL_AXES)


def asked(axes: Iterable[str] | None) -> list[str]:
    """Those of `axes` that an anatomy has to be asked for, each once."""
    return [axis for axis in dict.fromkeys(axes or ()) if axis in ASKED_AXES]


@dataclass(frozen=True)
class Cut:
    """One dimension of one parameter or buffer that shrinks with its unit group.

    `tensor` is the dotted path from the model's root. Unit `u` owns `width` entries along `dim` in each of `repeats`
    places: `offset + r * period + u * (stride or width) + w` for `r < repeats`, `w < width`. One place is the plain
    case; fused projections have one per matrix or a `Cut` for each.
    """

    tensor: str
    dim: int
    width: int = 1
    offset: int = 0
    stride: int = 0
    repeats: int = 1
    period: int = 0

    @property
    def module(self) -> str:
        """Path of the module that owns the tensor."""
        return self.tensor.rpartition(".")[0]

    @property
    def entries(self) -> int:
        """Entries along `dim` that one unit owns."""
        return self.repeats * self.width

    def positions(self, units: torch.Tensor) -> torch.Tensor:
        """`[len(units), entries]` int64: where the units' entries sit along `dim`."""
        start = self.offset + units[:, None, None] * (self.stride or self.width)
        place = torch.arange(self.repeats, device="cpu")[:, None] * self.period
        return (start + place + torch.arange(self.width, device="cpu")).flatten(1)


@dataclass(frozen=True)
class Attribute:
    """A number that a module remembers and that follows its group: `module.name = base + per_unit * units`.

    A `name` that starts with `config.` is one that the module reads from the config of the whole model. `most` bounds
    the number; None: it grows with the group.
    """

    module: str
    name: str
    per_unit: int = 1
    most: int | None = None
    base: int = 0

    def value(self, units: int) -> int:
        """The number for a group of `units`."""
        number = self.per_unit * units
        if self.base:  # else it stays what the table of a family made of it
            number += self.base
        return number if self.most is None else min(number, self.most)


@dataclass(frozen=True)
class UnitCost:
    """Cost of one unit. FLOPs are 2 x MACs, biases and norms are not counted (as the publications count).

    - `params`: weights of the unit, each used once for every token (times `share`, for experts that see a share of the
      tokens);
    - `experts`: the group of experts that the unit has a part of each of; where experts go, so do their parts. A token
      passes `chosen` of them, or all where fewer are left. Only `Anatomy` counts this: for `flops` here, none is gone;
    - `key_params`: those of them that pass the tokens of the keys instead, where these are others than the queries
      (cross-attention, spatially reduced keys);
    - `table_params`: those of them that no token passes, but the entries of a table (relative positions);
    - `per_token`: MACs of one token with such a table; `per_pass`: MACs of projecting it, once whatever the tokens;
    - `attention`: MACs per (query, key) pair: 2 x head_dim x query heads of the unit for QK^T and PV. Causal attention
      is counted in full, like the published MAC models do;
    - `tokens`: tokens of a sample that pass the block; None: the length of the sequence and `extra_tokens`;
    - `keys`: keys that one query meets; None: as many as `tokens`, or the length where `key_params` are told apart;
    - `extra_tokens`: tokens that join those of the text in one sequence, such as an image's;
    - `shared`: `(group, weights, tokens)` for weights that lie between this unit and those of another group, as in a
      convolution whose inputs and outputs are both cut. Half of them are among `params`, and are named here; as units
      of that group go, so do they. Only `Anatomy` counts this too;
    - `within`: the group whose units' costs hold the cost of this one already, as a head's hold that of its dimensions.
      `params`, `attention` and so on are then what one unit takes from them while they all stay. Only `Anatomy` counts
      it so;
    - `also`: what one unit takes from the units of yet another group, where those of `within` do not hold it all;
    - `image`: the group of those tokens that may go, one by one, from those that pass the block; or from those that it
      reads, where `key_params` are told apart. Only `Anatomy` counts this too.
    """

    params: float
    attention: int = 0
    key_params: float = 0
    table_params: int = 0
    per_token: int = 0
    per_pass: int = 0
    tokens: float | None = None
    keys: float | None = None
    share: float = 1.0
    extra_tokens: float = 0.0
    experts: str = ""
    chosen: int = 0
    shared: tuple[tuple[str, float, float | None], ...] = ()
    within: str = ""
    also: UnitCost | None = None
    image: str = ""

    def flops(self, length: float, width: float = 1.0) -> float:
        """FLOPs per sequence of `length` tokens (a mean length may be fractional).

        `width` is the share of the hidden width that is left: weights shrink with it, scores between tokens do not.
        """
        tokens = length + self.extra_tokens if self.tokens is None else self.tokens
        keys = self.keys if self.keys is not None else (length if self.key_params else tokens)
        weights = self.share * tokens * (self.params - self.key_params - self.table_params) + keys * self.key_params
        return 2.0 * (width * (weights + self.per_pass) + tokens * (keys * self.attention + self.per_token))

    def without(self, tokens: int) -> UnitCost:
        """The cost when so many of the tokens of `image` are gone."""
        if self.key_params and self.keys is not None:
            return replace(self, keys=self.keys - tokens)
        assert self.tokens is not None, "the size of an image says how many tokens it becomes"
        return replace(self, tokens=self.tokens - tokens)


@dataclass(frozen=True)
class UnitGroup:
    """The units of one block that are kept or removed one by one: the vector that a mask acts on.

    `width` is the number of channels of one unit at the block's projection input, where the mask acts. `attributes`
    follow the group's size. `config_key` is the attribute of the model's config that holds the size layer by layer;
    where the family has none it is empty, and the size is recorded under the group's name. `layer` counts within its
    stack. `least` units have to stay.
    """

    name: str
    axis: Axis
    layer: int
    size: int
    width: int
    cuts: tuple[Cut, ...]
    cost: UnitCost
    attributes: tuple[Attribute, ...] = ()
    config_key: str = ""
    least: int = 0


def group_kind(group: UnitGroup | str) -> str:
    """The group's name without its layer: what the groups of one stack and one kind have in common."""
    return re.sub(r"\blayers(\.\d+)+", "layers.*", group if isinstance(group, str) else group.name)


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
        for group in self.groups[len(self.blocks) :]:
            raise InputError(
                f"{purpose}: not possible for the axis {group.axis}; use a criterion that reads weights alone "
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
                raise InputError(
                    f"{purpose}: not possible for {block.units.name}, since {why}; "
                    'use recipe="kwon", criterion="magnitude" and tuning="none"'
                )

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
