"""Do two models agree? The distance between two outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from pyprune.core.errors import MismatchError
from pyprune.core.plan import Plan


def max_difference(first: Any, second: Any, plan: Plan | None = None) -> float:
    """Largest absolute difference over all tensors of two model outputs; inf when either holds NaN.

    `plan` tells which entries of the hidden width and which tokens the second model is left with: where it puts out
    fewer, these are compared. Key/value caches are not compared. MismatchError when the outputs do not hold the same
    tensors in the same shapes.
    """
    a, b = dict(tensors_of(first)), dict(tensors_of(second))
    if not a or a.keys() != b.keys():
        raise MismatchError(f"the outputs hold different tensors: {sorted(a)} and {sorted(b)}")
    cuts: dict[tuple[int, int], torch.Tensor] = {}
    for axis in ("hidden", "vocab"):
        if plan and axis in plan.kept and plan.counts[axis] < plan.sizes[axis]:
            cuts[plan.sizes[axis], plan.counts[axis]] = plan.kept[axis]
    worst = 0.0
    for name in a:
        x, y = a[name].detach(), b[name].detach()
        if x.dim() == y.dim():
            for dim, (size, left) in enumerate(zip(x.shape, y.shape, strict=True)):
                if (kept := cuts.get((size, left))) is not None:
                    x = x.index_select(dim, kept.to(x.device))
        if x.shape != y.shape:
            raise MismatchError(f"{name} is {tuple(x.shape)} in one output and {tuple(y.shape)} in the other")
        if x.numel() and not torch.equal(x, y):
            worst = max(worst, float((x.double() - y.double()).abs().nan_to_num(nan=torch.inf).max()))
    return worst


def tensors_of(value: Any, name: str = "output") -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a model's output with their names, those inside tuples and mappings included."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from tensors_of(item, f"{name}.{key}")
    elif isinstance(value, (tuple, list)):
        for index, item in enumerate(value):
            yield from tensors_of(item, f"{name}.{index}")
