"""The table of an attention: where its projections are, and what its modules remember about its heads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pyprune.core.anatomy import Block, SharedUnits
from pyprune.core.layers import matrix
from pyprune.core.units import QUERY_HEADS, Attribute, Cut, UnitCost, UnitGroup
from pyprune.models.emptied import empty_attention_, empty_projection_
from pyprune.models.family import Part
from pyprune.models.narrow import KV_MAP, Projections, narrow_
from pyprune.models.place import Place


@dataclass(frozen=True)
class Attention(Part):
    """One attention of a layer. All paths start at the layer; `module` computes the attention.

    Queries, keys and values come from three projections, or from one `fused` whose outputs are all queries, all keys,
    all values in this order; `interleaved` says that they are query, key and value of head 0, of head 1, ... instead.
    `fused` beside a `query` holds keys and values alone.

    One unit is a key/value head with the query heads that read it; or, with `apart` and if that is asked for, one of
    several such query heads, the last of which takes the key/value head with it.

    `head_dim`, `queries_per_unit`, `counts`, `widths` and `unit_counts` are attributes of `module`: the first two are
    read, the others follow the heads that stay (the number of query heads, that times `head_dim`, the number of
    key/value heads). `config_counts` are numbers of query heads that `module` reads from the config whenever it runs.
    `tables` are further tensors with one entry for every query head along a dimension, such as relative position
    biases.

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
    apart: bool = False
    when: Callable[[nn.Module], bool] | None = None
    empty_: Callable[[nn.Module, str | None], None] = empty_attention_

    def asked_axes(self, layer: nn.Module) -> tuple[str, ...]:
        """Query heads, where several read one key/value head."""
        module = layer.get_submodule(self.module)
        grouped = hasattr(module, KV_MAP) or self.queries_per_unit_of(module) > 1
        return (QUERY_HEADS,) if self.apart and grouped else ()

    def block(self, place: Place) -> Block:
        """The block of the layer at `place`."""
        module = place.layer.get_submodule(self.module)
        queries, heads = self.head_counts(place)
        apart = self.told_apart(place)
        repeats = 1 if apart else self.queries_per_unit_of(module)
        qk, vo = self.head_sizes(module)
        axis = QUERY_HEADS if apart else ("heads" if repeats == 1 else "kv_groups")
        read = self._read(place, repeats * qk, queries, heads)
        keys = tuple(cut for cuts in read[1:] for cut in cuts)
        output = place.inputs(self.output, repeats * vo)
        cuts = (*read[0], *output) if apart else (*read[0], *keys, *output)
        tables = tuple(Cut(f"{place.path}.{tensor}", dim, repeats) for tensor, dim in self.tables)
        path = f"{place.path}.{self.module}"
        of_units = tuple(Attribute(path, name) for name in self.unit_counts)
        attributes = (
            *(Attribute(path, name, repeats) for name in self.counts),
            *(Attribute(path, name, repeats * getattr(module, self.head_dim)) for name in self.widths),
            *(() if apart else of_units),
            *(Attribute(path, f"config.{name}", repeats) for name in self.config_counts),
        )
        tokens = place.token_counts(padded=True)
        group = UnitGroup(
            name=f"{place.name}.cross_{axis}" if self.cross else f"{place.name}.{axis}",
            axis=axis,
            layer=place.index,
            size=queries if apart else heads,
            width=repeats * vo,
            cuts=(*cuts, *tables),
            cost=UnitCost(
                params=place.unit_params(cuts),
                attention=repeats * (qk + vo),
                key_params=place.unit_params(keys) if self.cross or self.reduced_keys else 0,
                keys=place.source_tokens if self.cross else place.keys,
                **tokens,
                # Without a source the family skips cross-attention.
                share=0.0 if self.cross and place.source_tokens == 0 else 1.0,
            ),
            attributes=attributes,
            config_key="" if apart else self.config_key,
        )
        shared = None
        if apart:
            cost = UnitCost(place.unit_params(keys), **tokens)
            name, key = f"{place.name}.kv_groups", self.config_key
            units = UnitGroup(name, "kv_groups", place.index, heads, vo, keys, cost, of_units, config_key=key)
            shared = SharedUnits(units, self.readers(module, queries))
        # The source of cross-attention may be missing: then the layer leaves it out.
        leaves = None if self.cross else place.below(self.exit)
        return Block(place.path, f"{place.path}.{self.output}", (), leaves, group, shared=shared)

    def cut(self, place: Place, kept: torch.Tensor) -> None:
        """Let a module whose key/value heads lost some of their readers know which one each query head reads."""
        module: Any = place.layer.get_submodule(self.module)
        if not self.told_apart(place):
            return
        before, repeats = getattr(module, KV_MAP, None), self.queries_per_unit_of(module)
        readers = kept // repeats if before is None else before.cpu()[kept]
        heads, readers = readers.unique(return_inverse=True)
        if before is not None or len(readers) < repeats * len(heads):
            device = place.layer.get_submodule(self.output).weight.device
            # On the CPU while transformers builds a model on "meta": blocks are described by what it says.
            module.register_buffer(KV_MAP, readers if device.type == "meta" else readers.to(device))
            setattr(module, self.queries_per_unit, 1)
            self.narrow_(module)

    def native(self, place: Place) -> dict[str, int]:
        """Numbers of heads, and the size of one, under their names in the config."""
        key, module = self.native_key or self.config_key, place.layer.get_submodule(self.module)
        queries, heads = self.head_counts(place)
        if not key:
            return {}
        return {
            key: heads,
            **({self.queries_key: queries} if self.queries_key else {}),
            "head_dim": getattr(module, self.head_dim),
        }

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

    def head_counts(self, place: Place) -> tuple[int, int]:
        """Query heads, and key/value heads."""
        module = place.layer.get_submodule(self.module)
        (qk, vo), repeats = self.head_sizes(module), self.queries_per_unit_of(module)
        outputs, _ = matrix(place.layer.get_submodule(self.fused or self.key)).shape
        if (readers := getattr(module, KV_MAP, None)) is not None:
            queries = len(readers)
            return queries, (outputs - queries * qk) // (qk + vo) if self.fused else outputs // qk
        if self.fused:
            heads = outputs // (qk + vo + (0 if self.query else repeats * qk))
        else:
            heads = outputs // qk
        return repeats * heads, heads

    def told_apart(self, place: Place) -> bool:
        """Whether the units are query heads: asked for, or no longer in groups of one size."""
        module = place.layer.get_submodule(self.module)
        return hasattr(module, KV_MAP) or (QUERY_HEADS in place.asked and bool(self.asked_axes(place.layer)))

    def readers(self, module: nn.Module, queries: int) -> tuple[int, ...]:
        """The key/value head that each query head reads."""
        if (known := getattr(module, KV_MAP, None)) is not None:
            return tuple(known.tolist())
        repeats = self.queries_per_unit_of(module)
        return tuple(query // repeats for query in range(queries))

    def narrow_(self, module: nn.Module) -> None:
        """Let `module` run with heads of two sizes, or with key/value heads that not all have as many readers."""
        inside = f"{self.module}."
        names = {n: getattr(self, n).removeprefix(inside) for n in ("query", "key", "value", "fused")}
        output = self.output.removeprefix(inside) if self.output.startswith(inside) else ""
        options: Any = {"interleaved": self.interleaved, "head_dim": self.head_dim}
        narrow_(module, Projections(**names, **options, output=output))

    def _read(self, place: Place, width: int, queries: int, heads: int) -> tuple[tuple[Cut, ...], ...]:
        """Cuts of queries, of which a unit has `width` rows, of keys and of values; of all three if interleaved."""
        qk, vo = self.head_sizes(place.layer.get_submodule(self.module))
        if not self.fused:
            return place.outputs(self.query, width), place.outputs(self.key, qk), place.outputs(self.value, vo)
        if self.interleaved:
            return (place.outputs(self.fused, width + qk + vo),)
        keys = 0 if self.query else queries * qk
        return (
            place.outputs(self.query or self.fused, width),
            place.outputs(self.fused, qk, offset=keys),
            place.outputs(self.fused, vo, offset=keys + heads * qk),
        )
