"""The table of a feed-forward block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from pyprune.core.anatomy import Block
from pyprune.core.layers import matrix
from pyprune.core.units import Attribute, UnitCost, UnitGroup
from pyprune.models.emptied import empty_projection_
from pyprune.models.family import Part
from pyprune.models.place import Place


@dataclass(frozen=True)
class FeedForward(Part):
    """One feed-forward block of a layer. All paths start at the layer.

    `inner` are the layers whose outputs are the neurons (a layer need not have all of them); `fused` says that one of
    them holds gate and up projection one after the other. `counts` are attributes of modules that hold the number of
    neurons. `entry` are the modules that lead from the residual stream to the input of the `output` projection; the
    last may call the projection itself. `exit` is as in `core.anatomy.Block`. `config_key` is the attribute of the
    config that counts neurons layer by layer, empty when it has none. `when` tells the layers that have this block;
    None: all.

    `native_key` is the attribute that counts them in all layers alike (default: `config_key`).
    """

    inner: tuple[str, ...]
    output: str
    entry: tuple[str, ...] = ()
    exit: tuple[str, ...] | None = ()
    fused: bool = False
    counts: tuple[str, ...] = ()
    config_key: str = ""
    native_key: str = ""
    when: Callable[[nn.Module], bool] | None = None

    def block(self, place: Place) -> Block:
        """The block of the layer at `place`."""
        _, size = matrix(place.layer.get_submodule(self.output)).shape
        halves = {"repeats": 2, "period": size} if self.fused else {}
        inner = tuple(cut for name in place.having(self.inner) for cut in place.outputs(name, 1, **halves))
        cuts = (*inner, *place.inputs(self.output, 1))
        group = UnitGroup(
            name=f"{place.name}.neurons",
            axis="neurons",
            layer=place.index,
            size=size,
            width=1,
            cuts=cuts,
            cost=UnitCost(place.unit_params(cuts), **place.token_counts()),
            attributes=tuple(
                Attribute(f"{place.path}.{path}", name) for path, _, name in (c.rpartition(".") for c in self.counts)
            ),
            config_key=self.config_key,
        )
        return Block(place.path, f"{place.path}.{self.output}", place.below(self.entry), place.below(self.exit), group)

    def native(self, place: Place) -> dict[str, int]:
        """The number of neurons under its name in the config."""
        key = self.native_key or self.config_key
        return {key: self.block(place).units.size} if key else {}

    def emptied(self, place: Place) -> None:
        """Linear layers of width 0 leave the output projection's bias."""
        empty_projection_(place.layer.get_submodule(self.output))
