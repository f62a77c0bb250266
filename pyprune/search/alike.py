"""Plans in which all layers of a stack share one shape: what a family's own config can describe.

The k-th best units of all layers stay or go together. They are one unit of a smaller anatomy, worth and costing what
they do in sum, so that the search finds the best uniform plan as it finds any other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from pyprune.core.anatomy import Anatomy, Block
from pyprune.core.errors import InputError
from pyprune.core.plan import Plan
from pyprune.core.scores import Scores
from pyprune.core.units import UnitCost, UnitGroup, group_kind

_SUMMED = ("params", "attention", "key_params", "table_params", "per_token", "per_pass")


class Alike:
    """Groups that must keep as many units as each other, as one group of `anatomy` with `scores` of its own."""

    def __init__(self, scores: Scores, anatomy: Anatomy) -> None:
        members: dict[str, list[Block]] = defaultdict(list)
        for block in anatomy.blocks:
            members[group_kind(block.units)].append(block)
        self.sizes = {g.name: g.size for g in anatomy.groups}
        self.members = {name: [block.units for block in blocks] for name, blocks in members.items()}
        self.ranked = {g.name: _values(scores, g).argsort(descending=True, stable=True) for g in anatomy.groups}
        together, values = [], {}
        for name, blocks in members.items():
            groups = self.members[name]
            first = groups[0]
            if any(group.size != first.size for group in groups):
                raise InputError(f"uniform: {name} differ in size already, prune the dense model instead")
            together.append(replace(blocks[0], units=replace(first, name=name, cost=_together(groups))))
            values[name] = torch.stack([_values(scores, g)[self.ranked[g.name]].double() for g in groups]).sum(0)
        self.anatomy = Anatomy(anatomy.model_type, anatomy.layers, tuple(together))
        self.scores = Scores(values, scores.meta)

    def floors(self, least: Mapping[str, int]) -> dict[str, int]:
        """What stays of every group of the smaller anatomy when `least` stays of the groups of the whole."""
        return {name: max(least[g.name] for g in groups) for name, groups in self.members.items()}

    def spread(self, plan: Plan, scores: Scores) -> Plan:
        """The plan of the whole anatomy that `plan` of the smaller one stands for."""
        counts = {g.name: plan.counts[name] for name, groups in self.members.items() for g in groups}
        kept = {name: self.ranked[name][:count] for name, count in counts.items()}
        return Plan(kept, self.sizes, plan.length, {**plan.meta, "uniform": True})


def _together(groups: list[UnitGroup]) -> UnitCost:
    """Cost of one unit of each of `groups`; the groups that it depends on are merged like these."""
    costs = [group.cost for group in groups]
    summed: Any = {name: sum(getattr(cost, name) for cost in costs) for name in _SUMMED}
    return replace(
        costs[0],
        **summed,
        experts=group_kind(costs[0].experts),
        shared=tuple((group_kind(other), weights, tokens) for c in costs for other, weights, tokens in c.shared),
    )


def _values(scores: Scores, group: UnitGroup) -> torch.Tensor:
    values = scores.values.get(group.name)
    if values is None or values.numel() != group.size:
        raise InputError(f"scores: none for {group.name}, or not {group.size} of them; they belong to another model")
    return values
