"""Scores that add up to what removals cost, measured on data: the last step of every recipe that asks for it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from pyprune.capture.divergence import Divergence
from pyprune.capture.update_costs import update_costs
from pyprune.core.anatomy import Anatomy
from pyprune.core.batches import Samples, batching
from pyprune.core.stages import Stages
from pyprune.importance.cost_curve import CostCurve, calibrated
from pyprune.recipes.cotangents import is_causal

# One number a block and level needs fewer samples than a score of every unit.
_SAMPLES = 32
# All of them run once a block and level: small batches of one length take long, and predictions over a large vocabulary
# are held several times.
_BATCHES = {"max_tokens": 2048, "max_padding": 0.2}


def calibrated_scores(
    model: nn.Module, anatomy: Anatomy, curves: Mapping[str, CostCurve], samples: Samples, stages: Stages
) -> dict[str, torch.Tensor]:
    """Scores `[size]` of the units whose `curves` are given, with which the model's divergence from itself grows."""
    batches = samples.first(_SAMPLES).batches(**{**batching(model), **_BATCHES})
    batches = stages.progress(batches, "calibrate")
    divergence = Divergence(is_causal(model), model.config, temperature=1.0)
    updates = {name: curve.updates for name, curve in curves.items()}
    measured = update_costs(model, anatomy, batches, divergence, updates)
    return {name: calibrated(curve, measured[name]) for name, curve in curves.items()}
