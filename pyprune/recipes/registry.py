"""Recipes by name, and what every recipe can do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import nn

from pyprune.core.anatomy import Adapter, Anatomy
from pyprune.core.batches import Samples
from pyprune.core.budget import Budget
from pyprune.core.plan import Plan
from pyprune.core.registry import Registry
from pyprune.core.scores import Scores
from pyprune.core.stages import Stages
from pyprune.recovery.blockwise import Outcome


class Recipe(Protocol):
    """How a published system composes the stages. Instances are immutable settings; `name` is what users call it."""

    name: str

    def score(self, model: nn.Module, anatomy: Anatomy, samples: Samples, seed: int, stages: Stages) -> Scores:
        """What every unit is worth on `samples`."""
        ...

    def plan(self, scores: Scores, anatomy: Anatomy, budget: Budget, length: float, **bounds: Any) -> Plan:
        """Which units stay under `budget`, FLOPs counted at `length` tokens a sequence; `bounds` go to `search`."""
        ...

    def tune(
        self,
        student: nn.Module,
        dense: nn.Module,
        adapter: Adapter,
        plan: Plan,
        scores: Scores | None,
        samples: Samples,
        stages: Stages,
    ) -> list[Outcome]:
        """Get accuracy back without training: change the sliced `student` in place with `dense` as the teacher."""
        ...


RECIPES: Registry[Callable[..., Recipe]] = Registry("recipe")
