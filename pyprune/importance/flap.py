"""FLAP: how much a unit's output fluctuates (An, Zhao, Yu, Tang, Wang: AAAI 2024).

What a channel carries on average can be put into the bias of the projection (`recovery.bias_compensation`); what is
lost is its fluctuation. Weighted input feature variance: Var(x_j) * ||W_:j||^2 over all tokens, standardised within
each block so that blocks compare, then the mean over a unit's channels. The variance is exact over all tokens; the
released code mixes the running mean with itself and divides by batches.
"""

from __future__ import annotations

import torch

from pyprune.core.layers import matrix
from pyprune.importance.comparable import standardised
from pyprune.importance.registry import Evidence, criterion


@criterion("flap", needs="channels")
def flap(evidence: Evidence) -> dict[str, torch.Tensor]:
    channels = {}
    for block in evidence.anatomy.blocks:
        group, totals = block.units, evidence.given().channels[block.units.name]
        weight = matrix(evidence.model.get_submodule(block.projection)).detach().double().cpu()
        channels[group.name] = totals.m2 / max(totals.count - 1, 1) * weight.square().sum(0)
    return standardised(channels, evidence.anatomy)
