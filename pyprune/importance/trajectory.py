"""OPTIN's score of a unit: what its removal changes on the way, and in the answer, brought to one scale."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from pyprune.core.anatomy import Anatomy

# Of the published code: the temperature of its distillation loss, whose square it is multiplied by.
_TEMPERATURE_SQUARED = 16.0


def balance(trajectory: Mapping[str, torch.Tensor], answer: Mapping[str, torch.Tensor], lambda_c: float) -> float:
    """What answers are multiplied by to count `lambda_c` times as much as trajectories, by the units' geometric mean.

    One number for the whole model: one of each unit's own, as published, would undo what tells units apart.
    """
    pairs = torch.cat([torch.stack([trajectory[name], answer[name]]) for name in trajectory], 1)
    both = pairs[:, (pairs > 0).all(0)].log()
    return lambda_c * math.exp(float((both[0] - both[1]).mean())) if both.shape[1] else 1.0


def trajectory_scores(
    trajectory: Mapping[str, torch.Tensor], answer: Mapping[str, torch.Tensor], factor: float
) -> dict[str, torch.Tensor]:
    """`trajectory + factor * answer`, `{group: [size]}`."""
    return {name: trajectory[name] + factor * answer[name] for name in trajectory}


def published_scores(
    trajectory: Mapping[str, torch.Tensor],
    answer: Mapping[str, torch.Tensor],
    anatomy: Anatomy,
    lambda_c: float,
    vision: bool,
) -> dict[str, torch.Tensor]:
    """Scores as the released code computes them from both terms, with factors that the paper does not have.

    A unit's answer is multiplied by a power of ten of its own, 10^trunc(log10(MD / KD) - log10(1 / lambda_c)), where
    MD > KD > 0; else by the mean of those before it (of vision neurons 1). Then units of language models are multiplied
    by a ramp over their index, from 100 to 1 for neurons and 5 to 0.5 for heads, and those of the last layer by 1/2; of
    vision models neurons of the last layer by 1e-4.
    """
    values, factors = {}, {True: [], False: []}
    for block in anatomy.blocks:
        name, size = block.units.name, block.units.size
        neurons, last = block.units.axis == "neurons", block.layer_path == anatomy.layers[-1]
        scores = torch.zeros(size, dtype=torch.float64)
        for unit in range(size):
            md, kd = float(trajectory[name][unit]), _TEMPERATURE_SQUARED * float(answer[name][unit])
            before = factors[neurons]
            if md > kd > 0:
                before.append(10.0 ** math.trunc(math.log10(md / kd) + math.log10(lambda_c)))
                factor = before[-1]
            else:
                factor = sum(before) / len(before) if before and not (vision and neurons) else 1.0
            scores[unit] = md + factor * kd
        if not vision and size:
            scores *= torch.logspace(2 if neurons else math.log10(5), 0 if neurons else math.log10(0.5), size).double()
            scores *= 0.5 if last else 1.0
        elif neurons and last:
            scores *= 1e-4
        values[name] = scores
    return values
