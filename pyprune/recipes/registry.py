"""Recipes by name, and what every recipe can do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

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


# The plan for a model that is partly cut, by scores and by how many units of every group stay at least.
Find = Callable[[Scores, Anatomy, Mapping[str, int]], Plan]


@runtime_checkable
class BlockwiseRecipe(Recipe, Protocol):
    """A recipe that scores a block once those before it are cut: its plan is made on data."""

    def plan_blocks(
        self,
        dense: nn.Module,
        adapter: Adapter,
        anatomy: Anatomy,
        samples: Samples,
        find: Find,
        least: Mapping[str, int],
        seed: int,
        stages: Stages,
    ) -> tuple[Scores, Plan]:
        """Which units stay when `find` plans what is left of the budget before every block; `dense` stays as it is.

        The scores are those by which each block was cut.
        """
        ...


RECIPES: Registry[Callable[..., Recipe]] = Registry("recipe")
