"""The table of a head's dimensions: those in which queries meet keys, and those of values, cut from all heads alike.

One unit of `qk_dims` is a row of every query and every key head of the layer, or with rotary positions the two rows
that are rotated together. Where positions rotate some rows and leave others, these go one by one, and the rotated stay.
One unit of `vo_dims` is a row of every value head and a column of every head's output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from pyprune.core.anatomy import Block
from pyprune.core.units import Attribute, Axis, Cut, UnitCost, UnitGroup
from pyprune.models.attention import Attention
from pyprune.models.emptied import EmptyAttention
from pyprune.models.family import Part
from pyprune.models.place import Place


def head_dims(attention: Attention, **options: bool) -> tuple[HeadDims, HeadDims]:
    """The dimensions of the heads of `attention`, with the options of `HeadDims`."""
    return HeadDims(attention, "qk_dims", **options), HeadDims(attention, "vo_dims", **options)


@dataclass(frozen=True)
class HeadDims(Part):
    """One of the two kinds of dimensions of the heads of `attention`, where no other kind of attention is interleaved.

    `rotary` says that positions rotate pairs of dimensions, half of those that are rotated apart; `partial` that they
    rotate the first ones alone if the config says so. `alone` says that the heads themselves are no units, so that
    nothing else counts the cost of their dimensions.
    """

    attention: Attention
    asked: Axis
    rotary: bool = False
    partial: bool = False
    alone: bool = False

    @property
    def when(self) -> Any:
        """Layers with this attention, if it is known which dimensions positions rotate."""
        return lambda layer: (
            (self.attention.when is None or self.attention.when(layer))
            and (not self.rotary or self.partial or _rotates_all(layer.get_submodule(self.attention.module)))
        )

    def block(self, place: Place) -> Block:
        """The block of the layer at `place`; its size is that of a head, or of half of it or the part not rotated."""
        attention, module = self.attention, place.layer.get_submodule(self.attention.module)
        queries, heads = attention.head_counts(place)
        qk, vo = attention.head_sizes(module)
        units, norms = _Units(1, vo, 0), ()
        rows = self._rows(queries, heads, qk, vo)
        if self.asked == "qk_dims":
            units = self._units(module)
            masked = of_queries = units.cuts(place.outputs, *rows[0])
            of_keys = units.cuts(place.outputs, *rows[1])
            norms = tuple(self._norms(place, module, units, qk))
        else:
            masked = of_keys = units.cuts(place.outputs, *rows[2])
            of_queries = units.cuts(place.inputs, attention.output, 0, queries, vo)
        path, name = f"{place.path}.{attention.module}", self.asked.removesuffix("s")
        group = UnitGroup(
            name=f"{place.name}.cross_{self.asked}" if attention.cross else f"{place.name}.{self.asked}",
            axis=self.asked,
            layer=place.index,
            size=units.size,
            width=units.entries,
            cuts=(*of_queries, *of_keys, *norms),
            cost=self._cost(place, of_queries, of_keys, queries * units.entries),
            attributes=(Attribute(path, name, units.entries, base=units.first),),
            least=1,
        )
        projection = f"{place.path}.{attention.output}"
        return Block(place.path, projection, (), None, group, site="weights", masked=masked, norms=norms)

    def cut(self, place: Place, kept: torch.Tensor) -> None:
        """Let the attention run with heads of two sizes, and know which pairs of dimensions its positions rotate."""
        attention, module = self.attention, place.layer.get_submodule(self.attention.module)
        if self.asked == "qk_dims" and self._units(module).entries == 2:
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
        """Cost of one unit, within that of the heads if these are units."""
        cross = self.attention.cross
        params, keys = place.unit_params(of_queries), place.unit_params(of_keys)
        tokens: Any = {"keys": place.source_tokens if cross else place.keys, **place.token_counts(padded=True)}
        cost = UnitCost(
            params + keys,
            attention,
            key_params=keys if cross else 0,
            **tokens,
            share=0.0 if cross and place.source_tokens == 0 else 1.0,
        )
        if self.alone:
            return cost
        heads = self.attention.block(place)
        if heads.shared is None:
            return replace(cost, within=heads.units.name)
        also = UnitCost(keys, **tokens, within=heads.shared.units.name)
        return replace(cost, params=params, within=heads.units.name, also=also)

    def _rows(self, queries: int, heads: int, qk: int, vo: int) -> list[tuple[str, int, int, int]]:
        """Rows of queries, keys and values: the projection, the first row, the number of heads, and rows from one head
        to the next."""
        attention = self.attention
        names = [getattr(attention, name) or attention.fused for name in ("query", "key", "value")]
        rows = [(queries, qk), (heads, qk), (heads, vo)]
        starts = [0, 0, 0]
        if attention.fused:
            sizes = [0 if attention.query else queries * qk, heads * qk]
            if attention.interleaved:
                sizes, rows = [qk, qk], [(heads, 2 * qk + vo)] * 3
            starts = [0, sizes[0], sum(sizes)]
        return [(name, start, *row) for name, start, row in zip(names, starts, rows, strict=True)]

    def _units(self, module: Any) -> _Units:
        """Which dimensions of a query or key head are one unit."""
        qk, _ = self.attention.head_sizes(module)
        if not self.rotary or not getattr(module, "use_rope", True):
            return _Units(1, qk, 0)
        if self.partial and not _rotates_all(module):
            rotated = int(getattr(module, self.attention.head_dim) * _factors(module)[0])
            rotated += rotated % 2
            return _Units(1, qk - rotated, rotated)
        return _Units(2, qk // 2, 0)

    def _norms(self, place: Place, module: nn.Module, units: _Units, qk: int) -> Iterator[Cut]:
        """Cuts of norms over each query or key head, or over all of them together."""
        for name in ("q_norm", "k_norm"):
            if hasattr(module, name):
                path = f"{place.path}.{self.attention.module}.{name}.weight"
                heads = getattr(module, name).weight.shape[0] // qk
                yield from units.cuts(lambda path, width, **at: (Cut(path, 0, width, **at),), path, 0, heads, qk)


@dataclass(frozen=True)
class _Units:
    """The `size` units of one head: unit `u` is its dimensions `first + u + e * size` for `e < entries`."""

    entries: int
    size: int
    first: int

    def cuts(
        self, make: Callable[..., tuple[Cut, ...]], name: str, start: int, heads: int, period: int
    ) -> tuple[Cut, ...]:
        """What `make` cuts of the tensor or projection `name`, in which the first of `heads` begins at `start`."""
        if self.entries * self.size == period:
            return make(name, 1, offset=start, repeats=heads * self.entries, period=self.size)
        offsets = [start + self.first + entry * self.size for entry in range(self.entries)]
        return tuple(cut for at in offsets for cut in make(name, 1, offset=at, repeats=heads, period=period))


def _rotates_all(module: Any) -> bool:
    """Whether positions rotate every dimension of a head."""
    return all(factor == 1.0 for factor in _factors(module))


def _factors(module: Any) -> list[float]:
    """The shares of a head that positions rotate: one, or one for each kind of layer."""
    rope = getattr(module.config, "rope_parameters", None) or {}
    kinds = [kind for kind in rope.values() if isinstance(kind, dict)] or [rope]
    return [kind.get("partial_rotary_factor", 1.0) for kind in kinds]
