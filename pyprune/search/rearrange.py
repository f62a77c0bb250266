"""Mask rearrangement: swap units within a block so that the removed ones cancel (Kwon et al. 2022).

The diagonal search ignores interactions. With p units to remove from a block, the removed set P should minimise
1_P^T F 1_P = ||sum over P of g||^2, where column u of the per-sample gradient matrix is g_u; the greedy exchange of the
publication runs as one op, O(units) a step.
"""

from __future__ import annotations

from pyprune import ops
from pyprune.core.plan import Plan
from pyprune.core.statistics import Statistics


def rearrange(plan: Plan, statistics: Statistics) -> Plan:
    """The plan with the same number of kept units in every group, chosen by block Fisher information."""
    kept = {}
    for name, index in plan.kept.items():
        full = index.numel() in (0, plan.sizes[name])
        kept[name] = index if full else ops.rearrange(statistics.gradients[name], index.numel())
    return Plan(kept, dict(plan.sizes), plan.length, {**plan.meta, "rearranged": True})
