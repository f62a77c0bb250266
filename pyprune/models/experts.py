"""The tables of routed experts, whose weights lie stacked in 3-D tensors without a layer for each expert."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from pyprune.core.anatomy import Block
from pyprune.core.units import Attribute, Cut, UnitCost, UnitGroup
from pyprune.models.emptied import empty_experts_
from pyprune.models.family import Part
from pyprune.models.layer_config import follow_, override_
from pyprune.models.place import Place

# Grouped products want rows of a multiple of 16 bytes: 8 neurons in half precision.
_ALIGNED = 8


@dataclass(frozen=True)
class Experts(Part):
    """The choice among the experts of a layer: one unit is an expert, with its row of the router.

    All paths start at the layer. `router` has one row of its weight for each expert and `top_k` as the attribute that
    says how many a token passes: no more than there are. It returns logits, weights and indices of those that it
    chose. `module` holds the tensors `stacked`, with the experts along their first dimension. `counts` are paths of
    modules with the attribute that counts experts, `limited` of those with one that says how many are chosen.

    One expert at least stays: a layer without any is one whose experts have no neurons.
    """

    router: str
    module: str
    stacked: tuple[str, ...]
    counts: tuple[tuple[str, str], ...]
    limited: tuple[tuple[str, str], ...]
    top_k: str = "top_k"
    config_key: str = ""
    when: Callable[[nn.Module], bool] | None = None

    def block(self, place: Place) -> Block:
        """The block of the layer at `place`: its mask acts on the router."""
        router = place.layer.get_submodule(self.router)
        row = Cut(f"{place.path}.{self.router}.weight", 0)
        group = UnitGroup(
            name=f"{place.name}.experts",
            axis="experts",
            layer=place.index,
            size=len(router.weight),
            width=1,
            cuts=(row, *(Cut(f"{place.path}.{self.module}.{tensor}", 0) for tensor in self.stacked)),
            cost=UnitCost(place.unit_params((row,)), tokens=place.tokens),
            attributes=(
                *(Attribute(f"{place.path}.{path}", name) for path, name in self.counts),
                *(
                    Attribute(f"{place.path}.{path}", name, most=getattr(router, self.top_k))
                    for path, name in self.limited
                ),
            ),
            least=1,
        )
        return Block(place.path, f"{place.path}.{self.router}", (), None, group, site="router")


@dataclass(frozen=True)
class ExpertNeurons(Part):
    """The neurons of all experts of a layer: one unit is the same neuron of each of them, since tensors are not ragged.

    All paths start at the layer. `module` holds the tensors: `fused` `[experts, gate and up, inputs]` and `output`
    `[experts, outputs, neurons]`. `width` is its attribute that counts neurons. `router` and `top_k` are as in
    `Experts`.

    transformers computes all experts at once by a kernel that refuses widths that are no multiple of 8; layers of such
    a width go through their experts one after the other instead, which is slower.
    """

    module: str
    router: str
    fused: str
    output: str
    width: str
    top_k: str = "top_k"
    config_key: str = ""
    when: Callable[[nn.Module], bool] | None = None

    def block(self, place: Place) -> Block:
        """The block of the layer at `place`: its mask acts on the entries of the output tensor."""
        path = f"{place.path}.{self.module}"
        experts, _, size = getattr(place.layer.get_submodule(self.module), self.output).shape
        chosen = getattr(place.layer.get_submodule(self.router), self.top_k)
        cuts = (Cut(f"{path}.{self.fused}", 1, repeats=2, period=size), Cut(f"{path}.{self.output}", 2))
        group = UnitGroup(
            name=f"{place.name}.neurons",
            axis="neurons",
            layer=place.index,
            size=size,
            width=1,
            cuts=cuts,
            cost=UnitCost(
                place.unit_params(cuts),
                tokens=place.tokens,
                share=chosen / experts,
                experts=f"{place.name}.experts",
                chosen=chosen,
            ),
            attributes=(Attribute(path, self.width),),
            config_key=self.config_key,
        )
        return Block(place.path, f"{path}.{self.output}", (), None, group, site="tensor")

    def native(self, place: Place) -> dict[str, int]:
        """The number of neurons under its name in the config."""
        return {self.config_key: self.block(place).units.size} if self.config_key else {}

    def emptied(self, place: Place) -> None:
        """Experts without neurons put out zeros."""
        empty_experts_(place.layer.get_submodule(self.module))

    def cut(self, place: Place, kept: torch.Tensor) -> None:
        """Let the layer use the model's kernel for experts if its width allows that, and its own loop otherwise."""
        module = place.layer.get_submodule(self.module)
        if getattr(module, self.output).shape[-1] % _ALIGNED:
            override_(module, "_experts_implementation", "eager")
        else:
            follow_(module, "_experts_implementation")
