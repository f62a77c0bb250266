"""OPTIN: one-shot pruning by the distance of trajectories (Khaki and Plataniotis, ICLR 2024), without retraining.

A unit is worth what its removal changes in the features of later layers and in the answer. The publication runs one
forward pass per unit; here heads take theirs through the layers behind them alone (`capture.leave_one_out`), and all
neurons share some backward passes (`capture.probes`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from pyprune.capture.deltas import NoRule
from pyprune.capture.leave_one_out import leave_one_out
from pyprune.capture.probes import probe
from pyprune.capture.trajectory import Removal
from pyprune.core.anatomy import Adapter, Anatomy
from pyprune.core.batches import Batch, Samples, batching
from pyprune.core.budget import Budget, unit_cost
from pyprune.core.errors import InputError
from pyprune.core.plan import Plan
from pyprune.core.scores import Scores
from pyprune.core.stages import Stages
from pyprune.importance.trajectory import balance, published_scores, trajectory_scores
from pyprune.recipes.cotangents import is_causal
from pyprune.recipes.oneshot import OneShot
from pyprune.recipes.precision import checked_dtype, in_dtype
from pyprune.recipes.registry import RECIPES
from pyprune.recovery.blockwise import Outcome
from pyprune.recovery.refit import check_damping
from pyprune.search import search

# Of the published code: samples of the one batch, and tokens whose Gram matrix is taken.
_PUBLISHED_SAMPLES = 128
_PUBLISHED_ROWS = 768


@RECIPES.register("optin")
@dataclass(frozen=True)
class OPTIN:
    """Settings of the recipe.

    - `probes`: backward passes that score all neurons; the error of a score falls with the root of their number.
    - `heads`: what is no neuron is scored `exact`, or by the same `probes`.
    - `band`: share of the neurons that are scored exactly afterwards, those next to the threshold of a plan that keeps
      `around` of the FLOPs.
    - `tokens`: whole samples up to so many tokens are read, in the data's own order; at least one.
    - `gram`: of each `sample`'s own tokens, or `joint`, of all of them together, as published.
    - `lambda_c`: what the answer counts beside the trajectory.
    - `compat="published"`: every unit exactly, over 128 samples, with Gram matrices of 768 random tokens, a balance of
      each unit's own, and factors by a unit's index and layer. As slow as one forward pass per unit, nearly.
    - `tuning`, `damping`: see `OneShot`; the publication tunes nothing.
    - `score_dtype`: floating-point type of the scoring passes, or its name; None is the model's own.
    """

    probes: int = 32
    heads: Literal["exact", "probes"] = "exact"
    band: float = 0.0
    around: float = 0.6
    tokens: int = 1024
    gram: Literal["sample", "joint"] = "sample"
    lambda_c: float = 0.1
    compat: Literal["", "published"] = ""
    tuning: str = "none"
    damping: float = 1e-2
    score_dtype: torch.dtype | str | None = None

    name: ClassVar[str] = "optin"

    def __post_init__(self) -> None:
        if min(self.probes, self.tokens) < 1:
            raise InputError(f"probes={self.probes}, tokens={self.tokens}: at least 1 each")
        if not (0 <= self.band <= 1 and 0 < self.around <= 1):
            raise InputError(f"band={self.band}, around={self.around}: shares from 0 to 1, `around` above 0")
        if not 0 <= self.lambda_c < float("inf"):
            raise InputError(f"lambda_c={self.lambda_c} must be 0 or more")
        if self.heads not in ("exact", "probes") or self.gram not in ("sample", "joint"):
            raise InputError(f"heads={self.heads!r}, gram={self.gram!r}: choose exact or probes, sample or joint")
        if self.compat not in ("", "published"):
            raise InputError(f"compat={self.compat!r} must be 'published' or left out")
        if self.compat and self.lambda_c == 0:
            raise InputError("compat='published' divides by lambda_c: give it above 0")
        self._tuner()
        check_damping(self.damping)
        checked_dtype(self.score_dtype)

    def score(self, model: nn.Module, anatomy: Anatomy, samples: Samples, seed: int, stages: Stages) -> Scores:
        """Scores of every unit. InputError where units have no output projection, or are not those of blocks."""
        for check in (anatomy.need_blocks, anatomy.need_projections):
            check(f"recipe={self.name!r}")
        read, notices = self._read(samples)
        scored = in_dtype(model, checked_dtype(self.score_dtype))
        job = _Job(scored, anatomy, read.batches(**batching(model)), self, seed, stages, notices)
        meta: dict[str, Any] = {"criterion": self.name, "seed": seed, "compat": self.compat, "samples": len(read)}
        if self.compat:
            removal = job.exact({g.name: torch.arange(g.size) for g in anatomy.groups}, "units")
            vision = "pixel_values" in samples.inputs[0]
            values = published_scores(removal.trajectory, removal.answer, anatomy, self.lambda_c, vision)
        else:
            values, found = self._estimated(job, float(samples.lengths.double().mean()))
            meta |= found
        meta |= {"tokens": int(read.lengths.sum()), "mean_length": float(samples.lengths.double().mean())}
        return Scores(values, {**meta, "notices": notices})

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
        """As `OneShot` does."""
        return self._tuner().tune(student, dense, adapter, plan, scores, samples, stages)

    def _tuner(self) -> OneShot:
        return OneShot(tuning=self.tuning, damping=self.damping)

    def _read(self, samples: Samples) -> tuple[Samples, list[str]]:
        """The samples that are read, and what is to be said of them."""
        if self.compat:
            read, wanted = samples.first(_PUBLISHED_SAMPLES), _PUBLISHED_ROWS
        else:
            within = int((samples.lengths.cumsum(0) <= self.tokens).sum())
            read, wanted = samples.first(max(1, within)), self.tokens
        total = int(samples.lengths.sum())
        few = f"optin: the data has {total} tokens, and {wanted} were to be compared: all of them are"
        return read, [few] if total < wanted else []

    def _estimated(self, job: _Job, length: float) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Neurons by probes, the rest exactly; then, where a plan would cut, neurons too."""
        groups = [g for g in job.anatomy.groups if g.size]
        probed = [g.name for g in groups if g.axis == "neurons" or self.heads == "probes"]
        removal = job.probed(probed)
        error = _typical_error(removal, probed)
        job.refine(removal, {g.name: torch.arange(g.size) for g in groups if g.name not in probed}, "heads")
        factor = balance(removal.trajectory, removal.answer, self.lambda_c)
        values = trajectory_scores(removal.trajectory, removal.answer, factor)
        contested = self._contested(job.anatomy, values, length)
        if contested:
            job.refine(removal, contested, "band")
            values = trajectory_scores(removal.trajectory, removal.answer, factor)
        meta = {"probes": self.probes, "gram": self.gram, "balance": factor, "relative_error": error}
        return values, {**meta, "refined": sum(len(units) for units in contested.values())}

    def _contested(self, anatomy: Anatomy, values: dict[str, torch.Tensor], length: float) -> dict[str, torch.Tensor]:
        """`{group: indices}` of the neurons whose scores are next to where a plan at `around` would cut."""
        groups = [g for g in anatomy.groups if g.axis == "neurons" and g.size]
        many = round(self.band * sum(g.size for g in groups))
        if not many:
            return {}
        plan = search(Scores(values), anatomy, {"flops": self.around}, length)
        worth = [(values[g.name] / unit_cost(g, "flops", length)).clamp(min=1e-300).log() for g in groups]
        kept = torch.cat([w[plan.kept[g.name]] for w, g in zip(worth, groups, strict=True)])
        threshold = kept.min() if len(kept) else torch.cat(worth).max()
        near = (torch.cat(worth) - threshold).abs().argsort(stable=True)[:many]
        chosen = torch.zeros(sum(g.size for g in groups), dtype=torch.bool)
        chosen[near] = True
        parts = chosen.split([g.size for g in groups])
        return {g.name: part.nonzero()[:, 0] for g, part in zip(groups, parts, strict=True) if part.any()}


@dataclass
class _Job:
    """One model and its data, and the engines that look at them."""

    model: nn.Module
    anatomy: Anatomy
    batches: list[Batch]
    recipe: OPTIN
    seed: int
    stages: Stages
    notices: list[str] = field(default_factory=list)

    def probed(self, groups: list[str]) -> Removal:
        """Estimates of all units of `groups`."""
        recipe, batches = self.recipe, self.stages.progress(self.batches, "probes")
        joint = recipe.gram == "joint"
        return probe(self.model, self.anatomy, batches, groups, recipe.probes, self.seed, joint, is_causal(self.model))

    def exact(self, units: dict[str, torch.Tensor], what: str) -> Removal:
        """The exact change of each of `units`."""
        published = bool(self.recipe.compat)
        options = {"rows": _PUBLISHED_ROWS if published else 0, "seed": self.seed}
        options["progress"] = lambda blocks: self.stages.progress(blocks, what)
        common = self.anatomy, self.batches, units, published or self.recipe.gram == "joint", is_causal(self.model)
        try:
            return leave_one_out(self.model, *common, **options)
        except NoRule as reason:
            self.notices.append(f"optin: {reason}, so that layers behind a unit run again without it, in fp32 or wider")
            narrow = self.model.dtype in (torch.bfloat16, torch.float16)
            wide = in_dtype(self.model, torch.float32 if narrow else None)
            return leave_one_out(wide, *common, engine="forwards", **options)

    def refine(self, removal: Removal, units: dict[str, torch.Tensor], what: str) -> None:
        """Put exact changes in the place of what `removal` says of `units`."""
        if not units:
            return
        found = self.exact(units, what)
        for name, at in units.items():
            for part, exact in zip(vars(removal).values(), vars(found).values(), strict=True):
                part[name][at] = exact[name][at]


def _typical_error(removal: Removal, groups: list[str]) -> float:
    """The median standard error of a trajectory's estimate, relative to it."""
    values = torch.cat([removal.trajectory[name] for name in groups] or [torch.zeros(0)])
    errors = torch.cat([removal.trajectory_error[name] for name in groups] or [torch.zeros(0)])
    known = values > 0
    return float((errors[known] / values[known]).median()) if bool(known.any()) else 0.0
