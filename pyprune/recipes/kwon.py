"""Fast post-training pruning (Kwon et al., NeurIPS 2022): Fisher search, rearrangement, tuning or a stronger refit.

Beyond the publication: per-sample Fisher information, no labels needed, exact search with floors, no masks in the
graph, and a least-squares refit of the output projections in place of mask tuning (`tuning="mask"` gives the published
one).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from pyprune.capture.collect import collect
from pyprune.capture.cotangent import Cotangent
from pyprune.core.anatomy import Adapter, Anatomy
from pyprune.core.batches import Samples, batching
from pyprune.core.budget import Budget, Limit
from pyprune.core.errors import InputError
from pyprune.core.plan import Plan
from pyprune.core.scores import Scores
from pyprune.core.stages import Stages
from pyprune.importance import CRITERIA
from pyprune.importance.registry import Evidence
from pyprune.recipes.cotangents import CotangentName, check_cotangent, choose_cotangent
from pyprune.recipes.registry import RECIPES
from pyprune.recovery.blockwise import Outcome
from pyprune.recovery.mask_tuning import tune_masks
from pyprune.recovery.refit import check_damping, refit
from pyprune.search import rearrange, search
from pyprune.slicing.slice import slice_


@RECIPES.register("kwon")
@dataclass(frozen=True)
class Kwon:
    """Settings of the recipe.

    - `criterion`: a name from `pyprune.importance` (`fisher` per sample, `fisher_batch` as the published code).
    - `cotangent`, `draws`, `tokens`: see `recipes.cotangents.choose_cotangent`.
    - `rearrange`: exchange units within blocks by block Fisher information; None does so unless a refit follows. A
      refit undoes the cancellation that the exchange arranges, and does better with the strongest units.
    - `tuning`: `refit` (least squares), `mask` (published mask tuning) or `none`.
    - `damping`: of the refit, relative to the mean diagonal of its statistics.
    - `score_dtype`: floating-point type of the scoring pass; None is the model's own.
    """

    criterion: str = "fisher"
    cotangent: CotangentName | Cotangent = "auto"
    draws: int | None = None
    tokens: Literal["sum", "mean"] = "sum"
    rearrange: bool | None = None
    tuning: Literal["refit", "mask", "none"] = "refit"
    damping: float = 1e-2
    score_dtype: torch.dtype | None = None

    name = "kwon"

    def __post_init__(self) -> None:
        _ = CRITERIA[self.criterion]
        if self.tuning not in ("refit", "mask", "none"):
            raise InputError(f"tuning={self.tuning!r} must be refit, mask or none")
        check_cotangent(self.cotangent, self.draws, self.tokens)
        check_damping(self.damping)

    def score(self, model: nn.Module, anatomy: Anatomy, samples: Samples, seed: int, stages: Stages) -> Scores:
        """Scores of every unit with the statistics they came from (none for criteria without data)."""
        criterion = CRITERIA[self.criterion]
        statistics = None
        meta = {"criterion": self.criterion, "seed": seed, "mean_length": float(samples.lengths.double().mean())}
        if criterion.needs_data:
            cotangent, name, draws = choose_cotangent(model, self.cotangent, self.draws, seed, self.tokens)
            meta |= {"cotangent": name, "draws": draws, "samples": len(samples)}
            scored = model if self.score_dtype in (None, model.dtype) else copy.deepcopy(model).to(self.score_dtype)
            batches = stages.progress(samples.batches(**batching(model)), "score")
            statistics = collect(scored, anatomy, batches, cotangent, samples.lengths, draws)
        values = criterion.values(Evidence(model, anatomy, statistics, seed))
        return Scores(values, meta, statistics)

    def plan(
        self, scores: Scores, anatomy: Anatomy, budget: Budget, length: float, floor: int | Mapping[str, int] = 0
    ) -> Plan:
        """Exact search, then rearrangement where per-sample statistics exist."""
        plan = search(scores, anatomy, budget, length, floor)
        wanted = self.tuning != "refit" if self.rearrange is None else self.rearrange
        if wanted and scores.statistics is not None:
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

        Refit follows the dense model. Mask tuning follows, as published, the model pruned to the square root of the
        budget's share before rearrangement, which needs the scores.
        """
        if self.tuning == "none":
            return []
        batches = samples.batches(**batching(student))
        anatomy = adapter.anatomy(student)
        if self.tuning == "refit":
            return refit(student, anatomy, dense, adapter.anatomy(dense), batches, self.damping, stages)
        if scores is None:
            raise InputError("mask tuning needs the scores: its teacher is the model at the square root of the budget")
        dense_anatomy = adapter.anatomy(dense)
        full = Plan.keep_all(dense_anatomy, plan.length)
        resources = plan.meta.get("budget", ("flops",))
        shares = {r: math.sqrt(plan.cost(dense_anatomy, r) / full.cost(dense_anatomy, r)) for r in resources}
        milder = Budget(tuple(Limit(r, share, relative=True) for r, share in shares.items()))
        teacher = slice_(copy.deepcopy(dense), adapter, search(scores, dense_anatomy, milder, plan.length))
        return tune_masks(student, anatomy, teacher, adapter.anatomy(teacher), batches, stages)
