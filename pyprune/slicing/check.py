"""Do two models agree? The distance between two outputs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from pyprune.core.errors import MismatchError
from pyprune.core.plan import Plan


def max_difference(first: Any, second: Any, plan: Plan | None = None) -> float:
    """Largest absolute difference over all tensors of two model outputs; inf when either holds NaN.

    `plan` tells which entries of the hidden widths and which tokens the second model is left with: where it puts out
    fewer, these are compared. Stages may have and keep equal numbers: then those count that fit. Key/value caches are
    not compared. MismatchError when the outputs do not hold the same tensors in the same shapes.
    """
    a, b = dict(tensors_of(first)), dict(tensors_of(second))
    if not a or a.keys() != b.keys():
        raise MismatchError(f"the outputs hold different tensors: {sorted(a)} and {sorted(b)}")
    cuts: dict[tuple[int, int], list[torch.Tensor]] = {}
    sizes = plan.sizes if plan else {}
    for name, kept in plan.kept.items() if plan else ():
        if name.rpartition(".")[2] in ("hidden", "vocab") and len(kept) < sizes[name]:
            cuts.setdefault((sizes[name], len(kept)), []).append(kept)
    worst = 0.0
    for name in a:
        worst = max(worst, min(_difference(x, b[name].detach(), name) for x in _left(a[name].detach(), b[name], cuts)))
    return worst


def _left(
    x: torch.Tensor, y: torch.Tensor, cuts: Mapping[tuple[int, int], list[torch.Tensor]]
) -> Iterator[torch.Tensor]:
    """`x` with what `y` has left of it, in every way that `cuts` allow."""
    dims = enumerate(zip(x.shape, y.shape, strict=True)) if x.dim() == y.dim() else ()
    choices = [[(dim, kept) for kept in cuts[sizes]] for dim, sizes in dims if sizes in cuts]
    for chosen in itertools.product(*choices):
        left = x
        for dim, kept in chosen:
            left = left.index_select(dim, kept.to(x.device))
        yield left


def _difference(x: torch.Tensor, y: torch.Tensor, name: str) -> float:
    if x.shape != y.shape:
        raise MismatchError(f"{name} is {tuple(x.shape)} in one output and {tuple(y.shape)} in the other")
    if not x.numel() or torch.equal(x, y):
        return 0.0
    return float((x.double() - y.double()).abs().nan_to_num(nan=torch.inf).max())


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
