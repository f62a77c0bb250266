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
        head_dim, repeats = getattr(module, self.head_dim), self._queries_per_unit(module)
        size, width = self._size(place, head_dim, repeats), repeats * head_dim
        axis = "heads" if repeats == 1 else "kv_groups"
        reading = self._reading(place, size, head_dim, width)
        output = place.inputs(self.output, width)
        tables = tuple(Cut(f"{place.path}.{tensor}", dim, repeats) for tensor, dim in self.tables)
        path = f"{place.path}.{self.module}"
        attributes = (
            *(Attribute(path, name, repeats) for name in self.counts),
            *(Attribute(path, name, width) for name in self.widths),
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
                attention=2 * width,
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
        named = {key: size, self.queries_key: size * self._queries_per_unit(module)}
        return {name: value for name, value in named.items() if name} | {"head_dim": getattr(module, self.head_dim)}

    def emptied(self, place: Place) -> None:
        """Let the module run without heads: its output is the bias of the output projection."""
        empty_projection_(place.layer.get_submodule(self.output))
        inside = self.output.startswith(f"{self.module}.")
        projection = self.output.removeprefix(f"{self.module}.") if inside else None
        self.empty_(place.layer.get_submodule(self.module), projection)

    def _queries_per_unit(self, module: nn.Module) -> int:
        return getattr(module, self.queries_per_unit) if self.queries_per_unit else 1

    def _size(self, place: Place, head_dim: int, repeats: int) -> int:
        outputs, _ = matrix(place.layer.get_submodule(self.fused or self.key)).shape
        if not self.fused:
            return outputs // head_dim
        return outputs // (head_dim * (2 if self.query else repeats + 2))

    def _reading(self, place: Place, size: int, head_dim: int, width: int) -> tuple[Cut, ...]:
        """Cuts of queries, keys and values, in this order."""
        if not self.fused:
            return (
                *place.outputs(self.query, width),
                *place.outputs(self.key, head_dim),
                *place.outputs(self.value, head_dim),
            )
        if self.interleaved:
            return place.outputs(self.fused, width + 2 * head_dim)
        keys = 0 if self.query else size * width
        return (
            *place.outputs(self.query or self.fused, width),
            *place.outputs(self.fused, head_dim, offset=keys),
            *place.outputs(self.fused, head_dim, offset=keys + size * head_dim),
        )
