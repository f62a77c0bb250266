"""Scores of different blocks on one scale, for criteria whose own figures say nothing across blocks.

An additive search under a budget takes the units of the highest score for their cost. A score of cost times x thus
makes it take the units of the highest x, whatever they cost: what the publications do with one sorted list.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from pyprune.core.anatomy import Anatomy


def standardised(values: Mapping[str, torch.Tensor], anatomy: Anatomy) -> dict[str, torch.Tensor]:
    """Cost times how many standard deviations a unit stands above its block's mean (An et al. 2024), moved above 0."""
    found = {}
    for group in anatomy.groups:
        v = values[group.name].double()
        spread = v.std(correction=1) if len(v) > 1 else torch.zeros(())
        found[group.name] = (v - v.mean()) / spread if spread > 0 else torch.zeros_like(v)
    least = min((float(v.min()) for v in found.values() if len(v)), default=0.0)
    return {g.name: (found[g.name] - least) * g.cost.params for g in anatomy.groups}


def ranked(values: Mapping[str, torch.Tensor], anatomy: Anatomy) -> dict[str, torch.Tensor]:
    """Cost times the unit's rank in its block, as a share of the block: every block loses the same share."""
    found = {}
    for group in anatomy.groups:
        order = values[group.name].double().argsort(stable=True)
        rank = torch.empty(group.size, dtype=torch.float64)
        rank[order] = torch.arange(1, group.size + 1, dtype=torch.float64)
        found[group.name] = rank / max(group.size, 1) * group.cost.params
    return found
