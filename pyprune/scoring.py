"""Scores of whatever the axes name: the recipe's of blocks, layers and width, and the usage of tokens."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from torch import nn

from pyprune.core.anatomy import Anatomy
from pyprune.core.batches import Samples
from pyprune.core.errors import InputError
from pyprune.core.plan import Plan
from pyprune.core.scores import Scores
from pyprune.core.stages import Stages
from pyprune.core.units import asked
from pyprune.importance.usage import token_usage
from pyprune.recipes import Recipe


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


def coverage(plan: Plan, calibration: Samples, held_out: Samples | None) -> list[str]:
    """How much of the data's tokens is left."""
    lines = []
    for name, samples in (("calibration", calibration), ("held-out", held_out)):
        if samples is not None:
            usage = token_usage(samples, plan.sizes["vocab"])
            share = float(usage[plan.kept["vocab"]].sum() / usage.sum())
            lines.append(f"{share:.2%} of the tokens of the {name} data are kept; other words are spelled or unknown")
    return lines
