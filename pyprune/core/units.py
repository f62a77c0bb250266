"""Units, the groups that they form, what is cut with them and what they cost: the words that an anatomy is made of."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch

BlockAxis = Literal["heads", "kv_groups", "query_heads", "qk_dims", "vo_dims", "neurons", "experts", "channels"]
ModelAxis = Literal["layers", "hidden", "tokens", "vocab"]
Axis = BlockAxis | ModelAxis
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

    def factors(self, mask: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
        """`mask` `[size]`, a number a unit, to multiply `tensor` by: 1 at the entries along `dim` that no unit owns.

        Differentiable in the mask.
        """
        factors = torch.ones(tensor.shape[self.dim], dtype=mask.dtype)
        factors[self.positions(torch.arange(len(mask)))] = mask.cpu()[:, None]
        return factors.to(tensor).view(-1, *[1] * (tensor.dim() - self.dim - 1))


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
