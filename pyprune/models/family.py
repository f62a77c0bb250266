"""A model family as a table, and the one adapter that reads such tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pyprune.core.anatomy import Anatomy, Block, Cut, UnitCost, UnitGroup
from pyprune.core.errors import InputError
from pyprune.models.emptied import empty_attention_


@dataclass(frozen=True)
class Family:
    """Where the prunable parts of a family sit. Implements `core.anatomy.Adapter`.

    `layers` is the path of the layer list below the base model; every other path starts at a layer. `heads_key` and
    `neurons_key` are the config attributes that say how many units a layer has. One unit of attention is a key/value
    head with the query heads that read it, so `heads_key` counts key/value heads wherever a family tells the two apart.

    `head_dim`, `queries_per_unit`, `head_counts` and `head_widths` are attributes of the attention module: the first
    two are read, the others are brought in line with the heads that stay (their number, and that times `head_dim`).
    `derives_head_dim` says that the family computes `head_dim` from the config's head count. `refused` lists config
    values that cannot be pruned exactly: attribute, value, reason.
    """

    model_types: tuple[str, ...]
    layers: str
    heads_key: str
    neurons_key: str
    attention: str
    query: str
    key: str
    value: str
    attention_projection: str
    ffn_in: tuple[str, ...]
    ffn_projection: str
    ffn_entry: tuple[str, ...]
    head_dim: str
    attention_exit: tuple[str, ...] = ()
    ffn_exit: tuple[str, ...] = ()
    queries_per_unit: str | None = None
    head_counts: tuple[str, ...] = ()
    head_widths: tuple[str, ...] = ()
    derives_head_dim: bool = False
    refused: tuple[tuple[str, object, str], ...] = ()

    def anatomy(self, model: nn.Module) -> Anatomy:
        """Blocks and unit groups of `model` as it stands now, a pruned model included.

        `model` is the bare model or any of its task models. InputError when its config asks for something that cannot
        be pruned exactly, or when its modules are not those of the family.
        """
        self._check(model)
        layers, blocks = [], []
        for index, layer in enumerate(self._layers(model)):
            path = f"{self._layer_path(model)}.{index}"
            layers.append(path)
            blocks += [self._attention_block(path, index, layer), self._ffn_block(path, index, layer)]
        return Anatomy(model.config.model_type, tuple(layers), tuple(blocks))

    def resized(self, model: nn.Module, anatomy: Anatomy, kept: Mapping[str, torch.Tensor]) -> None:
        """Bring derived attributes, emptied attentions and the config in line after the weights were cut."""
        counts = [{} for _ in anatomy.layers]
        for block in anatomy.blocks:
            group, units = block.units, len(kept[block.units.name])
            counts[group.layer][self.config_key(group)] = units
            if group.axis != "neurons":
                self._resize_attention(model.get_submodule(block.layer_path), units)
        self._write_config(model.config, counts)

    def config_key(self, group: UnitGroup) -> str:
        """Name of the config attribute that holds the size of `group`."""
        return self.neurons_key if group.axis == "neurons" else self.heads_key

    def _check(self, model: nn.Module) -> None:
        for attribute, value, reason in self.refused:
            if getattr(model.config, attribute, None) == value:
                raise InputError(f"{type(model).__name__} with {attribute}={value!r} cannot be pruned: {reason}")

    def layer_list(self, model: nn.Module) -> nn.Module | None:
        """The list of layers of `model`; None when it is only a part of a model, such as a decoder inside its body."""
        try:
            return model.get_submodule(self._layer_path(model))
        except AttributeError:
            return None

    def _layer_path(self, model: nn.Module) -> str:
        prefix = getattr(model, "base_model_prefix", "")
        return f"{prefix}.{self.layers}" if prefix and hasattr(model, prefix) else self.layers

    def _layers(self, model: nn.Module) -> nn.Module:
        layers = self.layer_list(model)
        if layers is None:
            path = self._layer_path(model)
            raise InputError(
                f"{type(model).__name__} has no {path}: give the transformers model itself, not a wrapper of it"
            )
        return layers

    def _attention_block(self, path: str, index: int, layer: nn.Module) -> Block:
        head_dim = getattr(layer.get_submodule(self.attention), self.head_dim)
        repeats = self._queries_per_unit(layer)
        key = layer.get_submodule(self.key)
        axis = "heads" if repeats == 1 else "kv_groups"
        width = repeats * head_dim
        group = UnitGroup(
            name=f"layers.{index}.{axis}",
            axis=axis,
            layer=index,
            size=key.out_features // head_dim,
            width=width,
            cuts=(
                Cut(f"{path}.{self.query}", "out", width),
                Cut(f"{path}.{self.key}", "out", head_dim),
                Cut(f"{path}.{self.value}", "out", head_dim),
                Cut(f"{path}.{self.attention_projection}", "in", width),
            ),
            cost=UnitCost(params=2 * key.in_features * (width + head_dim), attention=2 * width),
        )
        return Block(path, f"{path}.{self.attention_projection}", (), _below(path, self.attention_exit), group)

    def _ffn_block(self, path: str, index: int, layer: nn.Module) -> Block:
        projection = layer.get_submodule(self.ffn_projection)
        group = UnitGroup(
            name=f"layers.{index}.neurons",
            axis="neurons",
            layer=index,
            size=projection.in_features,
            width=1,
            cuts=(
                *(Cut(f"{path}.{name}", "out", 1) for name in self.ffn_in),
                Cut(f"{path}.{self.ffn_projection}", "in", 1),
            ),
            cost=UnitCost(params=projection.out_features * (len(self.ffn_in) + 1)),
        )
        entry, exit_ = _below(path, self.ffn_entry), _below(path, self.ffn_exit)
        return Block(path, f"{path}.{self.ffn_projection}", entry, exit_, group)

    def _queries_per_unit(self, layer: nn.Module) -> int:
        return getattr(layer.get_submodule(self.attention), self.queries_per_unit) if self.queries_per_unit else 1

    def _resize_attention(self, layer: nn.Module, units: int) -> None:
        attention = layer.get_submodule(self.attention)
        heads = units * self._queries_per_unit(layer)
        for name in self.head_counts:
            setattr(attention, name, heads)
        for name in self.head_widths:
            setattr(attention, name, heads * getattr(attention, self.head_dim))
        if units == 0:
            inside = self.attention_projection.startswith(f"{self.attention}.")
            empty_attention_(
                attention, self.attention_projection.removeprefix(f"{self.attention}.") if inside else None
            )

    def _write_config(self, config: Any, counts: list[dict[str, int]]) -> None:
        """Per-layer entries for the layers that differ from the config's global, dense widths; none when all agree."""
        # Read past transformers' guard, which refuses a global width while layers differ in it.
        dense = {key: vars(config)[key] for key in (self.heads_key, self.neurons_key)}
        entries = {
            i: differing
            for i, layer in enumerate(counts)
            if (differing := {k: n for k, n in layer.items() if n != dense[k]})
        }
        if self.derives_head_dim and any(self.heads_key in entry for entry in entries.values()):
            # hidden_size // heads is wrong for a layer that lost heads; caches ask the config for head_dim first.
            config.head_dim = config.hidden_size // dense[self.heads_key]
        config.per_layer_config = entries or None


def _below(path: str, names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{path}.{name}" for name in names)
