"""Criteria by name. A criterion maps what it needs to one float64 number a unit, higher = more important."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from pyprune.core.anatomy import Anatomy
from pyprune.core.registry import Registry
from pyprune.core.statistics import Statistics

Need = Literal["nothing", "gradients", "channels", "weights"]


@dataclass(frozen=True)
class Evidence:
    """What a criterion may look at. `statistics` is None when no data went through the model."""

    model: nn.Module
    anatomy: Anatomy
    statistics: Statistics | None
    seed: int = 0

    def given(self) -> Statistics:
        """The statistics of a criterion that needs them."""
        assert self.statistics is not None, "the criterion is registered with `needs`"
        return self.statistics


Values = Callable[[Evidence], dict[str, torch.Tensor]]


@dataclass(frozen=True)
class Criterion:
    """`values(evidence)` gives `[size]` scores for every group name.

    `needs` names the part of the statistics that it reads: per-sample mask `gradients`, the totals of `channels`, or
    sums over single `weights`' gradients, of the kind `mode` (see `capture.weight_scores`). `first_order` says that the
    mean of the gradients counts, not their squares: with labels drawn from the model, whose mean gradient is 0, only
    noise would be left.
    """

    values: Values
    needs: Need
    mode: str = ""
    first_order: bool = False

    @property
    def needs_data(self) -> bool:
        return self.needs != "nothing"


CRITERIA: Registry[Criterion] = Registry("criterion")


def criterion(
    name: str, needs: Need = "nothing", mode: str = "", first_order: bool = False
) -> Callable[[Values], Values]:
    """Decorator that registers a function of `Evidence` as a criterion."""

    def add(values: Values) -> Values:
        CRITERIA.register(name)(Criterion(values, needs, mode, first_order))
        return values

    return add
