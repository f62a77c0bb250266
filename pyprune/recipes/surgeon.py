"""Structured optimal brain surgeon with a calibrated budget split, then least-squares refit. pyprune's own default.

Units are chosen knowing that a refit follows (`importance.surgeon`): the recipe scores what the units that stay
cannot make up for, where Fisher information scores what is lost before anything is made up for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from pyprune.capture.cotangent import Cotangent
from pyprune.capture.curvature import collect_curvature
from pyprune.core.anatomy import Adapter, Anatomy
from pyprune.core.batches import Samples, batching
from pyprune.core.budget import Budget
from pyprune.core.errors import InputError
from pyprune.core.layers import matrix
from pyprune.core.plan import Plan
from pyprune.core.scores import Scores
from pyprune.core.stages import Stages
from pyprune.importance.surgeon import eliminate
from pyprune.recipes.cotangents import CotangentName, check_cotangent, choose_cotangent
from pyprune.recipes.measured_costs import calibrated_scores
from pyprune.recipes.precision import checked_dtype, in_dtype
from pyprune.recipes.registry import RECIPES
from pyprune.recovery.blockwise import Outcome
from pyprune.recovery.refit import check_damping, refit
from pyprune.search import search


@RECIPES.register("surgeon")
@dataclass(frozen=True)
class Surgeon:
    """Settings of the recipe.

    - `cotangent`, `draws`, `tokens`: see `recipes.cotangents.choose_cotangent`.
    - `tuning`: `refit` or `none`. The scores suppose a refit: without one, `Kwon` does better.
    - `damping`: of the refit and of the elimination that foresees it, relative to the mean diagonal of the statistics.
    - `score_dtype`: floating-point type of the scoring passes, or its name; None is the model's own.

    Memory: statistics of all blocks at once, 8 (n^2 + d^2) + 28 n d bytes for a block of n channels and output width d:
    37 MB for 1,536 neurons and width 384, 2.4 GB for 11,008 and 4,096.
    """

    cotangent: CotangentName | Cotangent = "auto"
    draws: int | None = None
    tokens: Literal["sum", "mean"] = "sum"
    tuning: Literal["refit", "none"] = "refit"
    damping: float = 1e-2
    score_dtype: torch.dtype | str | None = None

    name = "surgeon"

    def __post_init__(self) -> None:
        if self.tuning not in ("refit", "none"):
            raise InputError(f"tuning={self.tuning!r} must be refit or none with the surgeon recipe")
        check_cotangent(self.cotangent, self.draws, self.tokens)
        check_damping(self.damping)
        checked_dtype(self.score_dtype)

    def score(self, model: nn.Module, anatomy: Anatomy, samples: Samples, seed: int, stages: Stages) -> Scores:
        """Second-order scores: a pass over data takes every block apart; others measure what that costs."""
        anatomy.need_blocks("recipe='surgeon'")
        cotangent, name, draws = choose_cotangent(model, self.cotangent, self.draws, seed, self.tokens)
        scored = in_dtype(model, checked_dtype(self.score_dtype))
        batches = stages.progress(samples.batches(**batching(model)), "curvature")
        curvature = collect_curvature(scored, anatomy, batches, cotangent, draws)
        blocks = [block for block in anatomy.blocks if block.units.size]
        taken_apart = {}
        for block in stages.progress(blocks, "eliminate"):
            unit, found = block.units.name, curvature.pop(block.units.name)
            weight = matrix(scored.get_submodule(block.projection))
            taken_apart[unit] = eliminate(weight, found.gram, found.metric, block.units.width, self.damping)
        values = {g.name: torch.zeros(g.size, dtype=torch.float64) for g in anatomy.groups}
        values |= calibrated_scores(scored, anatomy, taken_apart, samples, stages)
        meta = {"criterion": "surgeon", "cotangent": name, "draws": draws, "samples": len(samples), "seed": seed}
        return Scores(values, {**meta, "mean_length": float(samples.lengths.double().mean())})

    def plan(self, scores: Scores, anatomy: Anatomy, budget: Budget, length: float, **bounds: Any) -> Plan:
        """Exact search over the calibrated scores."""
        return search(scores, anatomy, budget, length, **bounds)

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
        """Refit the sliced `student`'s output projections in place to the dense model; what became of each block."""
        if self.tuning == "none":
            return []
        batches = samples.batches(**batching(student))
        return refit(student, adapter.anatomy(student), dense, adapter.anatomy(dense), batches, self.damping, stages)
