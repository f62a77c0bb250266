"""What one-shot recipes share: a criterion scores every unit, an exact search keeps the best, tuning trains nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
from torch import nn

from pyprune.capture.channels import collect_channels, collect_grams
from pyprune.capture.collect import collect
from pyprune.capture.cotangent import Cotangent
from pyprune.capture.weight_scores import Mode, collect_weight_scores
from pyprune.core.anatomy import Adapter, Anatomy
from pyprune.core.batches import Samples, batching
from pyprune.core.budget import Budget
from pyprune.core.errors import InputError
from pyprune.core.layers import matrix
from pyprune.core.plan import Plan
from pyprune.core.scores import Scores
from pyprune.core.stages import Stages
from pyprune.core.statistics import ChannelTotals, Statistics
from pyprune.importance import CRITERIA
from pyprune.importance.cost_curve import removal
from pyprune.importance.registry import Criterion, Evidence
from pyprune.recipes.cotangents import CotangentName, check_cotangent, choose_cotangent, is_causal
from pyprune.recipes.measured_costs import calibrated_scores
from pyprune.recipes.precision import checked_dtype, in_dtype
from pyprune.recovery.bias_compensation import compensate_bias
from pyprune.recovery.blockwise import Outcome
from pyprune.recovery.refit import check_damping, refit
from pyprune.search import search


@dataclass(frozen=True)
class OneShot:
    """Settings of every one-shot recipe.

    - `criterion`: a name from `pyprune.importance`.
    - `cotangent`, `draws`, `tokens`: what is differentiated, see `recipes.cotangents.choose_cotangent`; of no account
      for criteria without gradients.
    - `tuning`: `refit` (least squares), `bias` (bias compensation), `none`, or what a recipe adds.
    - `damping`: of the refit, relative to the mean diagonal of its statistics.
    - `calibrate`: scale the scores of every block until they add up to what the removal of its units costs, measured
      (`importance.cost_curve`), where those of different blocks are not comparable; the refit, if one is to follow, is
      foreseen.
    - `score_dtype`: floating-point type of the scoring pass, or its name; None is the model's own.
    """

    criterion: str = "fisher"
    cotangent: CotangentName | Cotangent = "auto"
    draws: int | None = None
    tokens: str = "sum"
    tuning: str = "refit"
    damping: float = 1e-2
    score_dtype: torch.dtype | str | None = None
    calibrate: bool = False

    name: ClassVar[str]
    tunings: ClassVar[tuple[str, ...]] = ("refit", "bias", "none")

    def __post_init__(self) -> None:
        _ = CRITERIA[self.criterion]
        if self.tuning not in self.tunings:
            raise InputError(f"tuning={self.tuning!r} must be one of {', '.join(self.tunings)}")
        check_cotangent(self.cotangent, self.draws, self.tokens)
        check_damping(self.damping)
        checked_dtype(self.score_dtype)

    def score(self, model: nn.Module, anatomy: Anatomy, samples: Samples, seed: int, stages: Stages) -> Scores:
        """Scores of every unit with the statistics they came from (none for criteria without data)."""
        criterion = CRITERIA[self.criterion]
        meta = {"criterion": self.criterion, "seed": seed, "mean_length": float(samples.lengths.double().mean())}
        statistics = None
        if criterion.needs_data:
            purpose = f"criterion={self.criterion!r}"
            (anatomy.need_masks if criterion.needs == "gradients" else anatomy.need_blocks)(purpose)
            statistics, found = self._collect(criterion, model, anatomy, samples, seed, stages)
            meta |= {**found, "samples": len(samples)}
        values = criterion.values(Evidence(model, anatomy, statistics, seed))
        return self._calibrated(Scores(values, meta, statistics), model, anatomy, samples, stages)

    def _calibrated(
        self, scores: Scores, model: nn.Module, anatomy: Anatomy, samples: Samples, stages: Stages
    ) -> Scores:
        """`scores` with comparable values, if that is asked for."""
        if not self.calibrate:
            return scores
        anatomy.need_blocks("calibrate=True")
        anatomy.need_projections("calibrate=True")
        scored = in_dtype(model, checked_dtype(self.score_dtype))
        grams: Mapping[str, torch.Tensor] = {}
        if self.tuning == "refit":
            grams = collect_grams(scored, anatomy, stages.progress(samples.batches(**batching(model)), "foresee"))
        curves = {}
        for block in anatomy.blocks:
            unit = block.units
            if unit.size:
                weight, found = matrix(scored.get_submodule(block.projection)), grams.get(unit.name)
                curves[unit.name] = removal(weight, scores.values[unit.name], unit.width, found, self.damping)
        values = scores.values | calibrated_scores(scored, anatomy, curves, samples, stages)
        return replace(scores, values=values, meta=scores.meta | {"calibrate": True})

    def _collect(
        self, criterion: Criterion, model: nn.Module, anatomy: Anatomy, samples: Samples, seed: int, stages: Stages
    ) -> tuple[Statistics, dict[str, Any]]:
        """What the criterion needs, and what the scores' `meta` says of it."""
        scored = in_dtype(model, checked_dtype(self.score_dtype))
        batches = stages.progress(samples.batches(**batching(model)), "score")
        if criterion.needs == "channels":
            return Statistics({}, samples.lengths, channels=collect_channels(scored, anatomy, batches)), {}
        # A causal model's labels are the text itself.
        labels = criterion.first_order and (samples.labels is not None or is_causal(model))
        cotangent, name, draws = choose_cotangent(model, self.cotangent, self.draws, seed, self.tokens, labels)
        found: dict[str, Any] = {"cotangent": name, "draws": draws}
        if criterion.first_order and name in ("sampled", "embedding"):
            found["notices"] = [
                f"{self.criterion}: random cotangents ({name}) have no mean gradient, which leaves a first-order score "
                "to chance: give labels, or take taylor_sq or fisher"
            ]
        if criterion.needs == "weights":
            weights = collect_weight_scores(scored, anatomy, batches, cotangent, cast(Mode, criterion.mode), draws)
            return Statistics({}, samples.lengths, draws, weights=weights), found
        return collect(scored, anatomy, batches, cotangent, samples.lengths, draws), found

    def plan(self, scores: Scores, anatomy: Anatomy, budget: Budget, length: float, **bounds: Any) -> Plan:
        """Exact search."""
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
        """Fit the sliced `student`'s output projections in place to the dense model; what became of each block."""
        if self.tuning == "none":
            return []
        batches = samples.batches(**batching(student))
        anatomy = adapter.anatomy(dense)
        if self.tuning == "refit":
            return refit(student, adapter.anatomy(student), dense, anatomy, batches, self.damping, stages)
        channels: Mapping[str, ChannelTotals] = (
            {} if scores is None or scores.statistics is None else (scores.statistics.channels)
        )
        if not channels:  # the plan came from elsewhere, or its criterion looked at something else
            channels = collect_channels(dense, anatomy, stages.progress(batches, "means"))
        return compensate_bias(student, dense, anatomy, plan, channels)
