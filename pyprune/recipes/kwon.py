"""Fast post-training pruning (Kwon et al., NeurIPS 2022): Fisher search, rearrangement, tuning or a stronger refit.

Beyond the publication: per-sample Fisher information, no labels needed, exact search with floors, no masks in the
graph, and a least-squares refit of the output projections in place of mask tuning (`tuning="mask"` gives the published
one).
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from pyprune.core.anatomy import Adapter, Anatomy
from pyprune.core.batches import Samples, batching
from pyprune.core.budget import Budget, Limit
from pyprune.core.errors import InputError
from pyprune.core.plan import Plan
from pyprune.core.scores import Scores
from pyprune.core.stages import Stages
from pyprune.recipes.oneshot import OneShot
from pyprune.recipes.registry import RECIPES
from pyprune.recovery.blockwise import Outcome
from pyprune.recovery.mask_tuning import tune_masks
from pyprune.search import rearrange, search
from pyprune.slicing.slice import slice_


@RECIPES.register("kwon")
@dataclass(frozen=True)
class Kwon(OneShot):
    """Settings of the recipe, besides those of `OneShot`.

    - `criterion`: `fisher` per sample, `fisher_batch` as the published code, or any other.
    - `rearrange`: exchange units within blocks by block Fisher information; None does so unless a refit follows. A
      refit undoes the cancellation that the exchange arranges, and does better with the strongest units.
    - `tuning`: also `mask`, published mask tuning.
    """

    rearrange: bool | None = None

    name: ClassVar[str] = "kwon"
    tunings: ClassVar[tuple[str, ...]] = ("refit", "mask", "bias", "none")

    def plan(self, scores: Scores, anatomy: Anatomy, budget: Budget, length: float, **bounds: Any) -> Plan:
        """Exact search, then rearrangement where per-sample statistics exist."""
        plan = super().plan(scores, anatomy, budget, length, **bounds)
        wanted = self.tuning in ("mask", "none") if self.rearrange is None else self.rearrange
        if wanted and scores.statistics is not None and scores.statistics.gradients:
            plan = rearrange(plan, scores.statistics)
        return plan

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
        """Fit the sliced `student`'s output projections in place; what became of each block.

        Mask tuning follows, as published, the model pruned to the square root of the budget's share before
        rearrangement, which needs the scores.
        """
        if self.tuning != "mask":
            return super().tune(student, dense, adapter, plan, scores, samples, stages)
        if scores is None:
            raise InputError("mask tuning needs the scores: its teacher is the model at the square root of the budget")
        batches, anatomy = samples.batches(**batching(student)), adapter.anatomy(student)
        dense_anatomy = adapter.anatomy(dense)
        full = Plan.keep_all(dense_anatomy, plan.length)
        resources = plan.meta.get("budget", ("flops",))
        shares = {r: math.sqrt(plan.cost(dense_anatomy, r) / full.cost(dense_anatomy, r)) for r in resources}
        milder = Budget(tuple(Limit(r, share, relative=True) for r, share in shares.items()))
        teacher = slice_(copy.deepcopy(dense), adapter, search(scores, dense_anatomy, milder, plan.length))
        return tune_masks(student, anatomy, teacher, adapter.anatomy(teacher), batches, stages)
