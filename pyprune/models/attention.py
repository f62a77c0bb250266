"""The table of an attention: where its projections are, and what its modules remember about its heads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from pyprune.core.anatomy import Attribute, Block, Cut, UnitCost, UnitGroup
from pyprune.core.layers import matrix
from pyprune.models.emptied import empty_attention_, empty_projection_
from pyprune.models.family import Part
from pyprune.models.place import Place


@dataclass(frozen=True)
class Attention(Part):
    """One attention of a layer. All paths start at the layer; `module` computes the attention.

    Queries, keys and values come from three projections, or from one `fused` whose outputs are all queries, all keys,
    all values in this order; `interleaved` says that they are query, key and value of head 0, of head 1, ... instead.
    `fused` beside a `query` holds keys and values alone.

    One unit is a key/value head with the query heads that read it. `head_dim`, `queries_per_unit`, `counts`, `widths`
    and `unit_counts` are attributes of `module`: the first two are read, the others follow the heads that stay (the
    number of query heads, that times `head_dim`, the number of units). `config_counts` are numbers of query heads that
    `module` reads from the config whenever it runs. `tables` are further tensors with one entry for every query head
    along a dimension, such as relative position biases.

    `config_key` is the attribute of the config that counts the units layer by layer (key/value heads, where a family
    tells the two apart); empty when it has none that speaks for this attention alone. `derives_head_dim` says that the
    family computes `head_dim` from it. `exit` is as in `core.anatomy.Block`, `cross` marks attention to another
    sequence, `reduced_keys` attention to fewer tokens of the same, and `empty_` replaces the forward of a module that
    lost all its heads. `when` tells the layers that have this attention; None: all.

    `native_key` is the attribute that counts units in all layers alike (default: `config_key`), `queries_key` the one
    that counts query heads.
    """

    module: str
    output: str
    query: str = ""
    key: str = ""
    value: str = ""
    fused: str = ""
    interleaved: bool = False
    head_dim: str = "head_dim"
    queries_per_unit: str = ""
    counts: tuple[str, ...] = ()
    widths: tuple[str, ...] = ()
    unit_counts: tuple[str, ...] = ()
    config_counts: tuple[str, ...] = ()
    tables: tuple[tuple[str, int], ...] = ()
    config_key: str = ""
    native_key: str = ""
    queries_key: str = ""
    derives_head_dim: bool = False
    exit: tuple[str, ...] | None = ()
    cross: bool = False
    reduced_keys: bool = False
    when: Callable[[nn.Module], bool] | None = None
    empty_: Callable[[nn.Module, str | None], None] = empty_attention_

    def block(self, place: Place) -> Block:
        """The block of the layer at `place`."""
        module = place.layer.get_submodule(self.module)
        (qk, vo), repeats = self.head_sizes(module), self.queries_per_unit_of(module)
        size, width = self._size(place, qk, vo, repeats), repeats * vo
        axis = "heads" if repeats == 1 else "kv_groups"
        reading = self._reading(place, size, qk, vo, repeats)
        output = place.inputs(self.output, width)
        tables = tuple(Cut(f"{place.path}.{tensor}", dim, repeats) for tensor, dim in self.tables)
        path = f"{place.path}.{self.module}"
        attributes = (
            *(Attribute(path, name, repeats) for name in self.counts),
            *(Attribute(path, name, repeats * getattr(module, self.head_dim)) for name in self.widths),
            *(Attribute(path, name) for name in self.unit_counts),
            *(Attribute(path, f"config.{name}", repeats) for name in self.config_counts),
        )
        params = place.unit_params(reading + output)
        group = UnitGroup(
            name=f"{place.name}.cross_{axis}" if self.cross else f"{place.name}.{axis}",
            axis=axis,
            layer=place.index,
            size=size,
            width=width,
            cuts=(*reading, *output, *tables),
            cost=UnitCost(
                params=params,
                attention=repeats * (qk + vo),
                key_params=place.unit_params(reading[len(reading) // 3 :]) if self.cross or self.reduced_keys else 0,
                keys=place.source_tokens if self.cross else place.keys,
                **place.token_counts(padded=True),
                # Without a source the family skips cross-attention.
                share=0.0 if self.cross and place.source_tokens == 0 else 1.0,
            ),
            attributes=attributes,
            config_key=self.config_key,
        )
        # The source of cross-attention may be missing: then the layer leaves it out.
        leaves = None if self.cross else place.below(self.exit)
        return Block(place.path, f"{place.path}.{self.output}", (), leaves, group)

    def native(self, place: Place) -> dict[str, int]:
        """Numbers of heads, and the size of one, under their names in the config."""
        key, module = self.native_key or self.config_key, place.layer.get_submodule(self.module)
        size = self.block(place).units.size
        if not key:
            return {}
        queries = {self.queries_key: size * self.queries_per_unit_of(module)} if self.queries_key else {}
        return {key: size, **queries, "head_dim": getattr(module, self.head_dim)}

    def emptied(self, place: Place) -> None:
        """Let the module run without heads: its output is the bias of the output projection."""
        empty_projection_(place.layer.get_submodule(self.output))
        inside = self.output.startswith(f"{self.module}.")
        projection = self.output.removeprefix(f"{self.module}.") if inside else None
        self.empty_(place.layer.get_submodule(self.module), projection)

    def head_sizes(self, module: nn.Module) -> tuple[int, int]:
        """Dimensions of a query or key head, and of a value head (see `head_dims.HeadDims`)."""
        size = getattr(module, self.head_dim)
        return getattr(module, "qk_dim", size), getattr(module, "vo_dim", size)

    def queries_per_unit_of(self, module: nn.Module) -> int:
        """Query heads that read one key/value head."""
        return getattr(module, self.queries_per_unit) if self.queries_per_unit else 1

    def _size(self, place: Place, qk: int, vo: int, repeats: int) -> int:
        outputs, _ = matrix(place.layer.get_submodule(self.fused or self.key)).shape
        if not self.fused:
            return outputs // qk
        return outputs // (qk + vo + (0 if self.query else repeats * qk))

    def _reading(self, place: Place, size: int, qk: int, vo: int, repeats: int) -> tuple[Cut, ...]:
        """Cuts of queries, keys and values, in this order."""
        if not self.fused:
            return (
                *place.outputs(self.query, repeats * qk),
                *place.outputs(self.key, qk),
                *place.outputs(self.value, vo),
            )
        if self.interleaved:
            return place.outputs(self.fused, (repeats + 1) * qk + vo)
        keys = 0 if self.query else size * repeats * qk
        return (
            *place.outputs(self.query or self.fused, repeats * qk),
            *place.outputs(self.fused, qk, offset=keys),
            *place.outputs(self.fused, vo, offset=keys + size * qk),
        )
