"""Scores of different blocks on one scale, for criteria whose own figures say nothing across blocks.

An additive search under a budget takes the units of the highest score for their cost. A score of cost times x thus
makes it take the units of the highest x, whatever they cost: what the publications do with one sorted list.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from pyprune.core.anatomy import Anatomy


def standardised(channels: Mapping[str, torch.Tensor], anatomy: Anatomy) -> dict[str, torch.Tensor]:
    """Cost times how many standard deviations of its block's channels a unit stands above their mean, moved above 0.

    `channels[name]` is `[size * width]`; a unit takes the mean of its channels (An et al. 2024: standardised first, so
    that heads, whose means lie close together, are not spread as far as neurons).
    """
    found = {}
    for group in anatomy.groups:
        v = channels[group.name].double()
        spread = v.std(correction=1) if len(v) > 1 else torch.zeros(())
        z = (v - v.mean()) / spread if spread > 0 else torch.zeros_like(v)
        found[group.name] = z.view(group.size, group.width).mean(1)
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
