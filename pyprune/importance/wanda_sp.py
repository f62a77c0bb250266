"""Wanda-sp: weights times the norm of what they multiply, summed over a unit (the structured Wanda of An et al. 2024).

A channel j of the output projection is worth sum_i |W_ij| * ||X_j||_2 with the norm over all tokens (Sun et al. 2024,
Wanda, for single weights); every block loses the same share of its units, as published.
"""

from __future__ import annotations

import torch

from pyprune.core.layers import matrix
from pyprune.importance.comparable import ranked
from pyprune.importance.registry import Evidence, criterion


@criterion("wanda_sp", needs="channels")
def wanda_sp(evidence: Evidence) -> dict[str, torch.Tensor]:
    values = {}
    for block in evidence.anatomy.blocks:
        group, totals = block.units, evidence.given().channels[block.units.name]
        weight = matrix(evidence.model.get_submodule(block.projection)).detach().double().cpu()
        channels = weight.abs().sum(0) * totals.squares.sqrt()
        values[group.name] = channels.view(group.size, group.width).sum(1)
    return ranked(values, evidence.anatomy)
