"""K-prune: what every unit knows, measured anew for each block, and a refit of each block as it is cut (Park, Choi and
Kang, ICLR 2024).

Blocks are cut one after another, from the input on. Before each, knowledge is measured in the model as it is by then,
and all units that are still to be decided share what is left of the budget; then the one block is cut, and its output
projection is solved anew for the dense model's residual stream.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from pyprune.capture.collect import frozen
from pyprune.capture.divergence import Curvature, Divergence
from pyprune.capture.knowledge import Knowledge, collect_knowledge
from pyprune.capture.outputs import run
from pyprune.core.anatomy import Adapter, Anatomy, Block
from pyprune.core.batches import Batch, Samples, batching
from pyprune.core.budget import Budget
from pyprune.core.errors import InputError
from pyprune.core.plan import Plan
from pyprune.core.scores import Scores
from pyprune.core.stages import Stages
from pyprune.core.units import asked
from pyprune.recipes.cotangents import is_causal
from pyprune.recipes.registry import RECIPES, Find
from pyprune.recovery.blockwise import Outcome, Walk
from pyprune.recovery.refit import LeastSquares, check_damping, refit
from pyprune.search import search
from pyprune.slicing.slice import slice_

# How near to each other the outputs of a whole pass and of one that began at a later layer are, if they are the same.
_ALIKE = 1e-2


@RECIPES.register("kprune")
@dataclass(frozen=True)
class KPrune:
    """Settings of the recipe.

    - `lam_pred`, `lam_rep`: weights of predictive and representational knowledge.
    - `mu`: weight of a head, whose knowledge is the mean over its channels; None: the sum, as 64 is for heads of 64.
    - `temperature`: of the predictions that are compared with the dense model's.
    - `pred`: what predictive knowledge is. `curvature`: the second derivative of the divergence, from labels that the
      model draws itself; `sample`: the square of its gradient, sample by sample; `batch`: of the mean gradient over
      `batch` samples in the data's own order, as published.
    - `tuning`: `refit` or `none`, which leaves the output projections as they are.
    - `damping`: of the refit, relative to the mean diagonal of its statistics.
    - `memory`: GiB of streams and of the dense model's answers that are kept; what exceeds it is computed anew.
    - `compat="published"` sets `pred="batch"` and `batch=32`.
    """

    lam_pred: float = 1.0
    lam_rep: float = 2.5e-4
    mu: float | None = 64.0
    temperature: float = 2.0
    pred: Literal["curvature", "sample", "batch"] = "curvature"
    batch: int = 32
    tuning: Literal["refit", "none"] = "refit"
    damping: float = 1e-2
    memory: float = 1.0
    compat: Literal["", "published"] = ""

    name = "kprune"

    def __post_init__(self) -> None:
        if self.compat not in ("", "published"):
            raise InputError(f"compat={self.compat!r} must be 'published' or left out")
        if self.compat:
            for name, value in (("pred", "batch"), ("batch", 32)):
                object.__setattr__(self, name, value)
        for name in ("lam_pred", "lam_rep", "memory"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"{name}={value} must be 0 or more, and finite")
        if not (self.lam_pred or self.lam_rep):
            raise InputError("lam_pred=0, lam_rep=0: no knowledge is left to score by")
        for name in ("temperature", "mu"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise InputError(f"{name}={value} must be above 0, and finite")
        if self.pred not in ("curvature", "sample", "batch"):
            raise InputError(f"pred={self.pred!r} must be 'curvature', 'sample' or 'batch'")
        if self.batch < 1:
            raise InputError(f"batch={self.batch} must be at least 1")
        if self.tuning not in ("refit", "none"):
            raise InputError(f"tuning={self.tuning!r} must be refit or none with the kprune recipe")
        check_damping(self.damping)

    def score(self, model: nn.Module, anatomy: Anatomy, samples: Samples, seed: int, stages: Stages) -> Scores:
        """InputError: scores of a block are those of the model that is left by then."""
        raise InputError("recipe='kprune' scores blocks while it prunes: use prune, or another recipe to score alone")

    def plan(self, scores: Scores, anatomy: Anatomy, budget: Budget, length: float, **bounds: Any) -> Plan:
        """Exact search over scores that are there already."""
        return search(scores, anatomy, budget, length, **bounds)

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
        """The plan that comes of cutting a copy of `dense` block after block, and what it was made by."""
        anatomy.need_blocks("recipe='kprune'")
        anatomy.need_projections("recipe='kprune'")
        axes = asked(group.axis for group in anatomy.groups)
        student = copy.deepcopy(dense)
        walk = Walk(student, anatomy, dense, anatomy, samples.batches(**batching(dense)), self._bytes)
        measured = _Measured(self, walk, len(samples), seed)
        kept, values, tokens = {}, {}, {}
        floors, plan = dict(least), Plan.keep_all(anatomy)
        with frozen(student), frozen(dense):
            if walk.resumes:
                measured.check_resumption()
            for index, block in enumerate(stages.progress(anatomy.blocks, "prune")):
                name, small = block.units.name, walk.student_anatomy
                if block.units.size:
                    knowledge = measured.from_block(index)
                    tokens = tokens or knowledge.tokens
                    found = self._values(knowledge, small)
                    values[name] = found[name]
                    whole = {g.name: torch.ones(g.size, dtype=torch.float64) for g in small.groups}
                    plan = find(Scores(whole | found), small, floors)
                    cut = Plan.keep_all(small, plan.length)
                    cut.kept[name] = plan.kept[name]
                    slice_(student, adapter, cut)
                    walk.student_anatomy = adapter.anatomy(student, axes)
                kept[name] = plan.kept[name]
                floors[name] = len(kept[name])
                if self.tuning == "refit" and index + 1 < len(anatomy.blocks):
                    walk.fit(index, self._started)
        meta = {"criterion": self.name, "samples": len(samples), "seed": seed, "compat": self.compat}
        meta |= {"mean_length": float(samples.lengths.double().mean()), "notices": _notices(anatomy, tokens)}
        scores = Scores({g.name: values.get(g.name, torch.zeros(g.size)) for g in anatomy.groups}, meta)
        return scores, Plan(kept, {g.name: g.size for g in anatomy.groups}, plan.length, plan.meta | meta)

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
        """Refit the sliced `student`'s output projections in place to the dense model; what became of each block.

        A block's refit depends on what is left of those before it alone, so that this solves what planning solved.
        """
        if self.tuning == "none":
            return []
        batches, anatomies = samples.batches(**batching(student)), (adapter.anatomy(student), adapter.anatomy(dense))
        return refit(student, anatomies[0], dense, anatomies[1], batches, self.damping, stages, self._bytes)

    @property
    def _bytes(self) -> float:
        return self.memory * (1 << 30)

    def _started(self, projection: nn.Module, block: Block) -> LeastSquares:
        return LeastSquares(projection, block, self.damping)

    def _values(self, knowledge: Knowledge, anatomy: Anatomy) -> dict[str, torch.Tensor]:
        """What every unit is worth: `[size]` for the groups that knowledge was measured of.

        The published score is this divided by the unit's cost, which is what the search makes of it.
        """
        values = {}
        for name, predictive in knowledge.predictive.items():
            group = anatomy.block(name).units
            both = self.lam_pred * predictive + self.lam_rep * knowledge.representational[name]
            of_unit = both.view(group.size, group.width)
            heads = group.axis != "neurons"
            values[name] = of_unit.mean(1) * self.mu if heads and self.mu is not None else of_unit.sum(1)
        return values


class _Measured:
    """Knowledge of the blocks that are still to be decided, in the model as it is by then."""

    def __init__(self, recipe: KPrune, walk: Walk, samples: int, seed: int) -> None:
        self.recipe, self.walk, self.samples = recipe, walk, samples
        self.dense = walk.teacher.model
        self.divergence = Divergence(is_causal(self.dense), self.dense.config, recipe.temperature)
        self.curvature = Curvature(self.divergence, seed)
        self.answers: dict[int, tuple[torch.Tensor, ...]] = {}

    @torch.no_grad()
    def check_resumption(self) -> None:
        """Let passes begin at the inputs where the output is not made of what the last layer puts out alone."""
        batch, last = self.walk.batches[0], len(self.walk.teacher.anatomy.blocks) - 1
        whole = self.divergence.said(run(self.dense, batch.inputs), batch)
        with self.walk.resumed(last) as enter:
            enter(0)
            partly = self.divergence.said(run(self.dense, batch.inputs), batch)
        pairs = zip(whole, partly, strict=True)
        self.walk.resumes = all(torch.allclose(a, b, rtol=_ALIKE, atol=_ALIKE * float(_size(a))) for a, b in pairs)

    def from_block(self, index: int) -> Knowledge:
        """What block `index` and those behind it know."""
        anatomy = self.walk.student_anatomy
        rest = replace(anatomy, blocks=anatomy.blocks[index:])
        group = self.recipe.batch if self.recipe.pred == "batch" else 1
        compared = self.recipe.pred != "curvature"
        loss = self.divergence if compared else self.curvature
        with self.walk.resumed(index) as enter:

            def batches() -> Iterator[Batch]:
                for i, batch in enumerate(self.walk.batches):
                    enter(i)
                    if compared:
                        self.divergence.dense = self._answer(i, batch)
                    yield batch

            return collect_knowledge(self.walk.student.model, rest, batches(), loss, self.samples, group)

    @torch.no_grad()
    def _answer(self, index: int, batch: Batch) -> tuple[torch.Tensor, ...]:
        """What the dense model says; kept where it is no larger than a hidden state, and there is room."""
        if index in self.answers:
            return self.answers[index]
        said = self.divergence.said(run(self.dense, batch.inputs), batch)
        size, width = sum(t.nbytes for t in said), self.walk.teacher.width
        if size <= int(batch.lengths.sum()) * width * said[0].element_size() and self.walk.room.take(size):
            self.answers[index] = said
        return said


def _size(x: torch.Tensor) -> torch.Tensor:
    """The largest finite absolute value."""
    return x.abs().where(x.isfinite(), 0).max()


def _notices(anatomy: Anatomy, tokens: Mapping[str, int]) -> list[str]:
    """What is odd about the model or the data, of which `tokens[name]` pass a block."""
    lines = []
    short = [b.units for b in anatomy.blocks if tokens.get(b.units.name, math.inf) < b.units.size * b.units.width]
    if short:
        worst = max(short, key=lambda units: units.size * units.width)
        lines.append(
            f"kprune: {tokens[worst.name]} calibration tokens for the {worst.size * worst.width} channels of "
            f"{worst.name}: they leave its refit to the damping, give more data"
        )
    return lines + [
        f"kprune: {block.units.name} has one unit: the block stays whole, or goes"
        for block in anatomy.blocks
        if block.units.size == 1
    ]
