"""Scores of whatever the axes name: the recipe's of blocks, layers and width, and the usage of tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from pyprune.core.anatomy import Anatomy
from pyprune.core.batches import Samples
from pyprune.core.budget import Budget, Limit
from pyprune.core.errors import InputError
from pyprune.core.plan import Plan
from pyprune.core.scores import Scores
from pyprune.core.stages import Stages
from pyprune.core.units import asked
from pyprune.importance.usage import token_usage
from pyprune.models.adapter import adapter_for
from pyprune.recipes import BlockwiseRecipe, Recipe


def scores_blocks(axes: Iterable[str] | None) -> bool:
    """Whether there is more to score than tokens."""
    return set(axes or ()) != {"vocab"}


def check_tuning(chosen: Recipe, axes: Iterable[str]) -> None:
    """InputError for tuning that compares blocks which a plan with these axes narrows; the vocabulary is cut last."""
    beyond = [axis for axis in asked(axes) if axis not in ("query_heads", "vocab")]
    if beyond and chosen.tuning != "none":
        scored_by = "" if chosen.name == "kwon" else ' and recipe="kwon"'
        raise InputError(
            f'tuning={chosen.tuning!r}: not possible for the axis {beyond[0]}; give tuning="none"{scored_by}'
        )


def check_units_tuned(chosen: Recipe, anatomy: Anatomy) -> None:
    """InputError for tuning of a model with units that no output projection reads, before they are scored."""
    if chosen.tuning != "none":
        anatomy.need_projections(f"tuning={chosen.tuning!r}")


def tokens_alone(plan: Plan) -> bool:
    """Whether nothing but tokens goes by `plan`."""
    return "vocab" in plan.axes and all(n == plan.sizes[name] for name, n in plan.without("vocab").counts.items())


def scored(
    chosen: Recipe,
    model: nn.Module,
    anatomy: Anatomy,
    calibration: Samples,
    seed: int,
    stages: Stages,
    axes: Iterable[str] | None,
) -> Scores:
    """The recipe's scores of everything but the vocabulary, and the usage of tokens if that was asked for."""
    if scores_blocks(axes):
        scores = chosen.score(model, replace(anatomy, vocabulary=None), calibration, seed, stages)
    else:
        length = float(calibration.lengths.double().mean())
        scores = Scores({}, {"criterion": "usage", "samples": len(calibration), "mean_length": length})
    if anatomy.vocabulary:
        group = anatomy.vocabulary.units
        scores.values[group.name] = token_usage(calibration, group.size)
    return scores


def planned_blocks(
    chosen: BlockwiseRecipe,
    dense: nn.Module,
    anatomy: Anatomy,
    calibration: Samples,
    budget: Budget,
    length: float,
    least: Mapping[str, int],
    search: Callable[..., Plan],
    seed: int,
    stages: Stages,
    **bounds: Any,
) -> tuple[Scores, Plan]:
    """The plan of a recipe that makes it while it cuts blocks, and the scores that it had.

    `search(chosen, scores, anatomy, budget, length, least, **bounds)` plans what is left. InputError for plans that
    must be alike in all layers.
    """
    if bounds.get("uniform"):
        raise InputError(
            f"deploy='uniform': not possible with recipe={chosen.name!r}, which decides on one layer after another"
        )
    limits = budget.absolute(anatomy, length)  # shares would be of a model that is smaller with every block
    left = Budget(tuple(Limit(resource, amount, relative=False) for resource, amount in limits.items()))

    def find(scores: Scores, remaining: Anatomy, floor: Mapping[str, int]) -> Plan:
        return search(chosen, scores, remaining, left, length, floor, **bounds)

    scores, plan = chosen.plan_blocks(dense, adapter_for(dense), anatomy, calibration, find, least, seed, stages)
    plan.meta |= {"budget": budget.to_dict()}
    return scores, plan


def coverage(plan: Plan, calibration: Samples, held_out: Samples | None) -> list[str]:
    """How much of the data's tokens is left."""
    lines = []
    for name, samples in (("calibration", calibration), ("held-out", held_out)):
        if samples is not None:
            usage = token_usage(samples, plan.sizes["vocab"])
            share = float(usage[plan.kept["vocab"]].sum() / usage.sum())
            lines.append(f"{share:.2%} of the tokens of the {name} data are kept; other words are spelled or unknown")
    return lines
