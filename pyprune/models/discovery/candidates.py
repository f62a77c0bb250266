"""What the linear layers of one layer may be: attentions and feed-forward blocks, by their order, shapes and names.

Nothing here is sure. Each candidate is proved afterwards, and one that does not fit is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from pyprune.core.layers import is_linear
from pyprune.models.discovery.trace import Call, runs

Spec = dict[str, Any]
_HEAD_SIZE = re.compile(r"head_(dim|size)|^d_kv$|key_value_proj_dim|kv_channels")
_HEADS = re.compile(r"heads?$|heads?_")
_KEY_VALUE = re.compile(r"kv|key_value")
_WIDTH = re.compile(r"all_head_size|split_size|inner_dim|^d_attn")


@dataclass(frozen=True)
class Candidate:
    """Layers `claimed` that may be one block, and the tables that may describe it, the likeliest first."""

    claimed: tuple[str, ...]
    specs: tuple[Spec, ...]


def candidates(layer: nn.Module, calls: list[Call]) -> Iterator[Candidate]:
    """Candidates of one layer, in the order in which they should be tried."""
    found = runs(calls)
    for i, run in enumerate(found):
        following = [calls_[0] for calls_ in found[i + 1 : i + 2]]
        after = found[i + 2][0] if i + 2 < len(found) else None
        if len(run) == 3 and following:
            yield from _attention(layer, run, following[0])
        if len(run) == 1 and after is not None and len(found[i + 1]) == 2:
            yield from _attention(layer, [*run, *found[i + 1]], after, cross=True)
        if len(run) == 2 and after is not None and len(found[i + 1]) == 1:
            yield from _attention(layer, [*run, *found[i + 1]], after)
        if len(run) == 1 and following:
            yield from _fused_attention(layer, run[0], following[0])
        if len(run) <= 2 and following:
            yield from _feed_forward(run, following[0])


def _feed_forward(inner: list[Call], output: Call) -> Iterator[Candidate]:
    claimed = (*(call.path for call in inner), output.path)
    widths = {call.outputs for call in inner}
    if {call.inputs for call in inner} != {output.outputs}:
        return
    spec = {"kind": "feed_forward", "inner": [call.path for call in inner], "output": output.path}
    if widths == {output.inputs}:
        yield Candidate(claimed, (spec,))
    elif len(inner) == 1 and widths == {2 * output.inputs}:
        yield Candidate(claimed, ({**spec, "fused": True},))


def _attention(layer: nn.Module, reading: list[Call], output: Call, cross: bool = False) -> Iterator[Candidate]:
    """Queries, keys and values from three layers; of those of one size the order is of no account."""
    if output.outputs != reading[0].inputs:
        return
    by_name = sorted(reading, key=lambda call: _letter(call.path))
    query, key, value = reading if cross else by_name
    if not (query.outputs == output.inputs and key.outputs == value.outputs <= query.outputs):
        return
    roles = {"query": query.path, "key": key.path, "value": value.path}
    specs = _specs(layer, [*roles.values()], output, key.outputs, {**roles, **({"cross": True} if cross else {})})
    if specs:
        yield Candidate((*roles.values(), output.path), specs)


def _letter(path: str) -> int:
    """Which of query, key and value a name stands for."""
    name = path.rpartition(".")[2].lower()
    found = re.search(r"(?:^|_|\b)(q|k|v)(?:uer|ey|al|_|\d|$)", name)
    return "qkv".index(found[1]) if found else 3


def _fused_attention(layer: nn.Module, fused: Call, output: Call) -> Iterator[Candidate]:
    if output.outputs != fused.inputs or not output.inputs < fused.outputs <= 3 * output.inputs:
        return
    key_width = (fused.outputs - output.inputs) // 2
    specs = []
    for interleaved in (False, True):
        roles: Spec = {"fused": fused.path, **({"interleaved": True} if interleaved else {})}
        specs += _specs(layer, [fused.path], output, key_width, roles)
    if specs:
        yield Candidate((fused.path, output.path), tuple(specs))


def _specs(layer: nn.Module, reading: list[str], output: Call, key_width: int, roles: Spec) -> tuple[Spec, ...]:
    """Tables of an attention whose output projection reads all its heads; none when its heads cannot be told."""
    owner = reading[0].rpartition(".")[0]
    module = layer.get_submodule(owner)
    numbers = {name: value for name, value in vars(module).items() if type(value) is int and not name.startswith("_")}
    head_dim = _head_dim(numbers, output.inputs)
    if head_dim is None:
        return ()
    size = numbers[head_dim]
    if output.inputs % size or key_width % size or not key_width:
        return ()
    heads, units = output.inputs // size, key_width // size
    if heads % units:
        return ()
    spec: Spec = {"kind": "attention", "module": owner, "output": output.path, "head_dim": head_dim, **roles}
    if heads > units:
        groups = [name for name, value in numbers.items() if "group" in name and value == heads // units]
        if not groups:
            return ()
        spec["queries_per_unit"] = groups[0]
    counted = {name for name, _ in numbers.items() if _HEADS.search(name) and not _HEAD_SIZE.search(name)}
    spec["counts"] = [n for n in counted if numbers[n] == heads and not _KEY_VALUE.search(n)]
    spec["unit_counts"] = [n for n in counted if numbers[n] == units and _KEY_VALUE.search(n)]
    wide = [n for n, value in numbers.items() if value == output.inputs]
    named = [n for n in wide if _WIDTH.search(n)]
    spec["counts"], spec["unit_counts"] = sorted(spec["counts"]), sorted(spec["unit_counts"])
    tables = _tables(module, owner, heads)
    variants = [{"widths": named}]
    if len(wide) > len(named):
        variants.append({"widths": wide})
    if hasattr(module, "config"):
        variants.append({"widths": named, "config_counts": ["num_attention_heads"]})
    return tuple({**spec, **variant, **({"tables": tables} if tables else {})} for variant in variants)


def _head_dim(numbers: dict[str, int], width: int) -> str | None:
    """The attribute that holds the size of a head: by its name, or as the width divided by a number of heads."""
    for name, value in numbers.items():
        if _HEAD_SIZE.search(name) and value > 0 and width % value == 0:
            return name
    for name, value in numbers.items():
        if _HEADS.search(name) and value > 0 and width % value == 0:
            sizes = [n for n, v in numbers.items() if v == width // value and not _HEADS.search(n)]
            if len(sizes) == 1:
                return sizes[0]
    return None


def _tables(module: nn.Module, owner: str, heads: int) -> list[list[Any]]:
    """Parameters of an attention, beside its linear layers, of which one dimension has an entry for every head."""
    linear = {path for path, inner in module.named_modules() if is_linear(inner)}
    found = []
    for name, parameter in module.named_parameters():
        fitting = [dim for dim, size in enumerate(parameter.shape) if size == heads]
        if len(fitting) == 1 and name.rpartition(".")[0] not in linear:
            found.append([f"{owner}.{name}" if owner else name, fitting[0]])
    return found
