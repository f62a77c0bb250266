"""What can be pruned in a model, in words that no model family owns: blocks, unit groups, cuts and costs.

A transformer layer is two *blocks*, attention and feed-forward. Each ends in an output projection that writes to the
residual stream, and its *units* (heads, KV groups, neurons) are slices of that projection's input. A `Block` says where
these sit in the module tree; everything above works on blocks and never asks for a family's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import nn

Axis = Literal["heads", "kv_groups", "neurons"]
Side = Literal["in", "out"]


@dataclass(frozen=True)
class Cut:
    """One linear layer that loses channels with its unit group.

    `width` channels belong to one unit; unit `u` owns channels `u * width ... (u + 1) * width - 1` of the layer's
    inputs (`side="in"`) or outputs (`side="out"`, bias included).
    """

    module: str
    side: Side
    width: int


@dataclass(frozen=True)
class UnitCost:
    """Cost of one unit. FLOPs are 2 x MACs, biases and norms are not counted (as the publications count).

    A sequence of `length` tokens costs `2 * (length * params + length**2 * attention)` FLOPs a unit: `params` weights
    are used once a token, and `attention` is MACs per (query, key) pair: 2 x head_dim x query heads of the unit for
    QK^T and PV. Causal attention is counted in full, like the published MAC models do.
    """

    params: int
    attention: int = 0

    def flops(self, length: float) -> float:
        """FLOPs per sequence of `length` tokens (a mean length may be fractional)."""
        return 2.0 * (length * self.params + length * length * self.attention)


@dataclass(frozen=True)
class UnitGroup:
    """The units of one block that are kept or removed one by one: the vector that a mask acts on.

    `width` is the number of channels of one unit at the block's projection input, where the mask acts.
    """

    name: str
    axis: Axis
    layer: int
    size: int
    width: int
    cuts: tuple[Cut, ...]
    cost: UnitCost


@dataclass(frozen=True)
class Block:
    """One attention or feed-forward half of a layer, and how to run it alone.

    With `h` the hidden state that enters the block and `x` `[B, T, size * width]` the input of its output projection:

    - `x` is found by running `entry` on `h` up to the projection; an empty `entry` means the layer itself, whose own
      call arguments (masks, positions) it needs: the case of attention;
    - the residual stream behind the block is `h + projection(x)`;
    - the next block's `h` is that stream after the modules of `exit` (post-norm families: the norm).

    All names are dotted paths from the model's root.
    """

    layer_path: str
    projection: str
    entry: tuple[str, ...]
    exit: tuple[str, ...]
    units: UnitGroup


@dataclass(frozen=True)
class Anatomy:
    """Blocks of a model in the order in which the data passes them."""

    model_type: str
    layers: tuple[str, ...]
    blocks: tuple[Block, ...]

    @property
    def groups(self) -> tuple[UnitGroup, ...]:
        return tuple(block.units for block in self.blocks)

    def block(self, group_name: str) -> Block:
        """The block whose unit group is called `group_name`; KeyError names the known ones."""
        for block in self.blocks:
            if block.units.name == group_name:
                return block
        raise KeyError(f"{group_name!r} is no unit group; the model has {', '.join(g.name for g in self.groups)}")

    def flops(self, length: float, kept: Mapping[str, int] | None = None) -> float:
        """FLOPs of the prunable blocks for one sequence of `length` tokens, with `kept[name]` units (default: all)."""
        return sum(g.cost.flops(length) * (g.size if kept is None else kept[g.name]) for g in self.groups)

    def params(self, kept: Mapping[str, int] | None = None) -> int:
        """Weights of the prunable blocks with `kept[name]` units a group (default: all); biases not counted."""
        return sum(g.cost.params * (g.size if kept is None else kept[g.name]) for g in self.groups)


class Adapter(Protocol):
    """What pyprune has to know about a model family. The tables in `pyprune/models/` implement it."""

    model_types: tuple[str, ...]

    def anatomy(self, model: nn.Module) -> Anatomy:
        """Blocks and unit groups of `model` as it stands now (a pruned model included)."""
        ...

    def resized(self, model: nn.Module, anatomy: Anatomy, kept: Mapping[str, torch.Tensor]) -> None:
        """Bring derived attributes, the config's per-layer entries and emptied blocks in line with the cut weights.

        `anatomy` is the one from before the cut, `kept[name]` the kept unit indices of every group.
        """
        ...
