"""The table of a head's dimensions: those in which queries meet keys, and those of values, cut from all heads alike.

One unit of `qk_dims` is a row of every query and every key head of the layer, or with rotary positions the two rows
that are rotated together. One unit of `vo_dims` is a row of every value head and a column of every head's output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pyprune.core.anatomy import Attribute, Axis, Block, Cut, UnitCost, UnitGroup
from pyprune.models.attention import Attention
from pyprune.models.emptied import EmptyAttention
from pyprune.models.family import Part
from pyprune.models.place import Place


def head_dims(attention: Attention, rotary: bool = False) -> tuple[HeadDims, HeadDims]:
    """The dimensions of the heads of `attention`; `rotary` where positions rotate pairs, half a head apart."""
    return HeadDims(attention, "qk_dims", rotary), HeadDims(attention, "vo_dims")


@dataclass(frozen=True)
class HeadDims(Part):
    """One of the two kinds of dimensions of the heads of `attention`, which must not be interleaved or across."""

    attention: Attention
    asked: Axis
    rotary: bool = False

    @property
    def when(self) -> Any:
        """Layers with this attention, if positions rotate all dimensions or none."""
        return lambda layer: (
            (self.attention.when is None or self.attention.when(layer))
            and (not self.rotary or _rotates_all(layer.get_submodule(self.attention.module)))
        )

    def block(self, place: Place) -> Block:
        """The block of the layer at `place`; its size is that of a head, or half of it."""
        attention, module = self.attention, place.layer.get_submodule(self.attention.module)
        queries, heads = attention.head_counts(place)
        qk, vo = attention.head_sizes(module)
        places = {"repeats": heads, "period": vo}
        offsets = (0, queries * qk, (queries + heads) * qk)
        entries, size, norms = 1, vo, ()
        if self.asked == "qk_dims":
            entries = 2 if self._rotates(module) else 1
            size = qk // entries
            places = {"repeats": heads * entries, "period": size}
            names = (attention.fused or attention.query, attention.fused or attention.key)
            masked = place.outputs(names[0], 1, **(places | {"repeats": queries * entries}))
            of_queries, of_keys = masked, self._outputs(place, names[1], offsets[1], places)
            norms = tuple(
                Cut(f"{place.path}.{attention.module}.{name}.weight", 0, 1, repeats=entries, period=size)
                for name in ("q_norm", "k_norm")
                if hasattr(module, name)
            )
        else:
            masked = self._outputs(place, attention.fused or attention.value, offsets[2], places)
            of_queries, of_keys = place.inputs(attention.output, 1, **(places | {"repeats": queries})), masked
        group = UnitGroup(
            name=f"{place.name}.{self.asked}",
            axis=self.asked,
            layer=place.index,
            size=size,
            width=entries,
            cuts=(*of_queries, *of_keys, *norms),
            cost=self._cost(place, of_queries, of_keys, queries * entries),
            attributes=(Attribute(f"{place.path}.{attention.module}", self.asked.removesuffix("s"), entries),),
            least=1,
        )
        projection = f"{place.path}.{attention.output}"
        return Block(place.path, projection, (), None, group, site="weights", masked=masked, norms=norms)

    def cut(self, place: Place, kept: torch.Tensor) -> None:
        """Let the attention run with heads of two sizes, and know which pairs of dimensions its positions rotate."""
        attention, module = self.attention, place.layer.get_submodule(self.attention.module)
        if self.asked == "qk_dims" and self._rotates(module):
            before = getattr(module, "rotary_dims", None)
            if before is None:
                device = place.layer.get_submodule(attention.output).weight.device
                before = torch.arange(getattr(module, attention.head_dim), device=device)
            pairs = torch.cat([kept, kept + len(before) // 2]).to(before.device)
            module.register_buffer("rotary_dims", before[pairs])
        if isinstance(module, EmptyAttention):
            return
        attention.narrow_(module)

    def _cost(self, place: Place, of_queries: tuple[Cut, ...], of_keys: tuple[Cut, ...], attention: int) -> UnitCost:
        """Cost of one unit, within that of the heads."""
        heads = self.attention.block(place)
        tokens = {"keys": place.keys, **place.token_counts(padded=True)}
        params, keys = place.unit_params(of_queries), place.unit_params(of_keys)
        if heads.shared is None:
            return UnitCost(params + keys, attention, **tokens, within=heads.units.name)
        also = UnitCost(keys, **tokens, within=heads.shared.units.name)
        return UnitCost(params, attention, **tokens, within=heads.units.name, also=also)

    def _outputs(self, place: Place, name: str, offset: int, places: dict[str, int]) -> tuple[Cut, ...]:
        return place.outputs(name, 1, **places, offset=offset if self.attention.fused else 0)

    def _rotates(self, module: nn.Module) -> bool:
        return self.rotary and getattr(module, "use_rope", True)


def _rotates_all(module: Any) -> bool:
    """Whether positions rotate every dimension of a head."""
    rope = getattr(module.config, "rope_parameters", None) or {}
    kinds = [rope, *(kind for kind in rope.values() if isinstance(kind, dict))]
    return all(kind.get("partial_rotary_factor", 1.0) == 1.0 for kind in kinds)
