"""Criteria by name. A criterion maps what it needs to one float64 number a unit, higher = more important."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from pyprune.core.anatomy import Anatomy
from pyprune.core.registry import Registry
from pyprune.core.statistics import Statistics


@dataclass(frozen=True)
class Evidence:
    """What a criterion may look at. `statistics` is None when no data went through the model."""

    model: nn.Module
    anatomy: Anatomy
    statistics: Statistics | None
    seed: int = 0


@dataclass(frozen=True)
class Criterion:
    """`values(evidence)` gives `[size]` scores for every group name; `needs_data` says whether it reads statistics."""

    values: Callable[[Evidence], dict[str, torch.Tensor]]
    needs_data: bool


CRITERIA: Registry[Criterion] = Registry("criterion")


def criterion(name: str, needs_data: bool) -> Callable[[Callable[[Evidence], dict[str, torch.Tensor]]], Callable]:
    """Decorator that registers a function of `Evidence` as a criterion."""

    def add(values: Callable[[Evidence], dict[str, torch.Tensor]]) -> Callable[[Evidence], dict[str, torch.Tensor]]:
        CRITERIA.register(name)(Criterion(values, needs_data))
        return values

    return add
