"""One forward pass, seen from the linear layers: in which order they are called, and which of them read the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import nn

from pyprune.core.layers import is_linear, matrix


@dataclass(frozen=True)
class Call:
    """A call of the linear layer at `path`. `source` is the same for calls that read the same tensor; `tokens` are the
    rows of it that belong to one sample."""

    path: str
    layer: nn.Module
    source: tuple[Any, ...]
    tokens: float

    @property
    def inputs(self) -> int:
        return matrix(self.layer).shape[1]

    @property
    def outputs(self) -> int:
        return matrix(self.layer).shape[0]


@dataclass(frozen=True)
class FoundStack:
    """Layers of one kind: the pattern of their list (see `family.Stack`), where each is, and the calls in it, by paths
    from there."""

    layers: str
    roots: dict[tuple[int, ...], str]
    calls: dict[tuple[int, ...], list[Call]]


@torch.no_grad()
def trace(model: Any, inputs: Mapping[str, torch.Tensor]) -> list[Call]:
    """Calls of linear layers in `model(**inputs)`, in order."""
    calls: list[Call] = []
    batch = len(next(iter(inputs.values())))
    alive = []  # so that no two tensors have the same address

    def note(path: str) -> Any:
        def hook(layer: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            if args:
                x = args[0]
                alive.append(x)
                rows = x.numel() / max(x.shape[-1] * batch, 1)
                calls.append(Call(path, layer, (x.data_ptr(), x.shape, x.stride(), x._version), rows))

        return hook

    handles = [m.register_forward_pre_hook(note(path)) for path, m in model.named_modules() if is_linear(m)]
    try:
        model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def repeated(calls: list[Call]) -> dict[str, int]:
    """Paths of layers that are called more than once, and how often."""
    return {path: times for path, times in Counter(call.path for call in calls).items() if times > 1}


def stacks(model: Any, calls: list[Call]) -> Iterator[FoundStack]:
    """Lists of layers that hold the calls, below the base model; of lists inside lists the inner ones."""
    base = getattr(model, "base_model_prefix", "")
    prefix = f"{base}." if base and hasattr(model, base) else ""
    done: list[str] = []
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or not path.startswith(prefix) or path.startswith(tuple(done)):
            continue
        if len(module) == 0 or not any(call.path.startswith(f"{path}.") for call in calls):
            continue
        done.append(f"{path}.")
        pattern, places = _innermost(path, module, calls)
        found = {}
        for indices, place in places:
            inside = [call for call in calls if call.path.startswith(f"{place}.")]
            found[indices] = [
                Call(call.path.removeprefix(f"{place}."), call.layer, call.source, call.tokens) for call in inside
            ]
        yield FoundStack(pattern.removeprefix(prefix), dict(places), found)


def _innermost(path: str, layers: nn.ModuleList, calls: list[Call]) -> tuple[str, list[tuple[tuple[int, ...], str]]]:
    """The pattern of a list and the places of its layers; of the lists inside it where these hold nearly all calls."""
    for name, inner in layers[0].named_modules():
        if not isinstance(inner, nn.ModuleList) or len(inner) == 0:
            continue
        first = f"{path}.0."
        mine = [call for call in calls if call.path.startswith(first)]
        outside = [call for call in mine if not call.path.startswith(f"{first}{name}.")]
        if len(mine) - len(outside) < 2 or len(outside) > 2:
            continue
        lists = [dict(layer.named_modules()).get(name) for layer in layers]
        if all(isinstance(found, nn.ModuleList) for found in lists):
            places = [
                ((i, j), f"{path}.{i}.{name}.{j}") for i, found in enumerate(lists) for j in range(len(found or ()))
            ]
            return f"{path}.*.{name}", places
    return path, [((i,), f"{path}.{i}") for i in range(len(layers))]


def runs(calls: list[Call]) -> list[list[Call]]:
    """Calls one after the other that read the same tensor, together."""
    return [list(run) for _, run in groupby(calls, key=lambda call: call.source)]
