"""Diagonal Fisher information of unit masks (Kwon et al., NeurIPS 2022).

Removing unit u changes the loss by about 1/2 * F_uu with F = E[g g^T] and g the gradient at its mask. Factors that are
the same for all units are kept out; the sum over samples is taken, so scores of more data are larger.
"""

from __future__ import annotations

import torch

from pyprune import ops
from pyprune.core.statistics import Statistics
from pyprune.importance.registry import Evidence, criterion

# Kwon's code squares the gradient of mini-batch means; its GLUE batch is 32.
KWON_BATCH = 32


def per_sample(statistics: Statistics) -> dict[str, torch.Tensor]:
    """F_uu = sum over samples and draws of g_u squared: the empirical (or true) Fisher information."""
    scores = {}
    for name, g in statistics.gradients.items():
        scores[name] = torch.zeros(g.shape[1], dtype=torch.float64, device=g.device)
        ops.fisher_update_(scores[name], g)
    return scores


def per_batch(statistics: Statistics, batch: int = KWON_BATCH, mean: bool = True) -> dict[str, torch.Tensor]:
    """What the released code of Kwon et al. computes: the square of every mini-batch mean, summed over mini-batches.

    Without `mean` it is the square of every mini-batch's sum, as in that of Poh, Chan and Lim (2024).

    Samples are batched in the data's own order, however they travelled through the model. Within a batch opposite
    gradients cancel, which the per-sample form does not allow.
    """
    scores = {}
    for name, g in statistics.gradients.items():
        by_sample = g.double().view(statistics.samples, statistics.draws, -1)
        chunks = by_sample.split(batch)
        scores[name] = torch.stack([chunk.mean(0) if mean else chunk.sum(0) for chunk in chunks]).square().sum((0, 1))
    return scores


@criterion("fisher", needs="gradients")
def fisher(evidence: Evidence) -> dict[str, torch.Tensor]:
    return per_sample(evidence.given())


@criterion("fisher_batch", needs="gradients")
def fisher_batch(evidence: Evidence) -> dict[str, torch.Tensor]:
    return per_batch(evidence.given())
