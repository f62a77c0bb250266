"""The best plan where units of a group do not cost the same each: a width has a price, as on a measured latency table.

A group's options are the widths of its price table, each worth the summed score of the best units that fill it. One
option of every group is chosen by the multiple-choice knapsack (`pyprune.ops.knapsack`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from pyprune import ops
from pyprune.core.anatomy import Anatomy
from pyprune.core.budget import unit_cost
from pyprune.core.errors import BudgetError, InputError
from pyprune.core.plan import Plan
from pyprune.core.scores import Scores
from pyprune.core.units import UnitGroup

# As in separable.py: sums of the same floats in another order differ in the last bits.
_ROUNDING = 1 + 1e-12

# {group: {kept units: cost}}
Prices = Mapping[str, Mapping[int, float]]


@dataclass
class _Options:
    """One group's widths, widest first, and what they cost and are worth; `ranked` are its units, best first."""

    group: UnitGroup
    ranked: torch.Tensor
    counts: list[int]
    costs: list[float]
    values: list[float]


def knapsack(
    scores: Scores, anatomy: Anatomy, prices: Prices, budget: float, length: float, bins: int = 10_000
) -> Plan:
    """The plan of the highest total score whose widths' prices add up to at most `budget`; never over.

    prices: for every group with units, {kept units: cost}: the widths that it may have, in any unit of cost. Costs need
        be neither linear nor rising (a latency table; `unit_prices` for FLOPs or parameters at multiples of a granule).
        A group whose table lacks 0 keeps something.
    budget: in the unit of the prices.
    length: recorded in the plan; the sequence length at which its FLOPs count.
    bins: steps in which the budget is counted. Prices that are multiples of one unit, at most `bins` of which fit the
        budget, give the exact optimum. Others are rounded up: the plan is the best of those that leave a `groups /
        bins` of the budget unused, and what is left over is filled as long as a wider option fits.

    Raises: BudgetError with the smallest feasible amount; InputError for tables that do not fit the anatomy.
    """
    options = [_options(g, scores, prices) for g in anatomy.groups if g.size]
    _check(options, anatomy, prices, budget, length)
    floors = [min(o.costs) for o in options]
    extra = [[cost - floor for cost in o.costs] for o, floor in zip(options, floors, strict=True)]
    # What every plan pays is taken off first: rounding cannot make the cheapest plan exceed the budget.
    room = max(budget * _ROUNDING - math.fsum(floors), 0.0)
    costs, most = ops.quantise_costs(torch.tensor(list(itertools.chain(*extra)), dtype=torch.float64), room, bins)
    values = torch.tensor([v for o in options for v in o.values], dtype=torch.float64)
    offsets = torch.tensor([0, *itertools.accumulate(len(o.counts) for o in options)])
    chosen = ops.knapsack(values, costs, offsets, most).tolist()
    _fill(options, extra, chosen, room)

    kept = {g.name: torch.arange(0) for g in anatomy.groups}
    kept |= {o.group.name: o.ranked[: o.counts[c]] for o, c in zip(options, chosen, strict=True)}
    spent = math.fsum(o.costs[c] for o, c in zip(options, chosen, strict=True))
    meta = {"prices": {"budget": budget, "spent": spent}, **scores.meta}
    return Plan(kept, {g.name: g.size for g in anatomy.groups}, length, meta)


def unit_prices(anatomy: Anatomy, resource: str, length: float, multiple: int = 1) -> dict[str, dict[int, float]]:
    """Prices of widths whose units cost the same: FLOPs per sequence of `length` tokens, or parameters.

    Widths are 0, the multiples of `multiple`, and the group's size, as far as the group may have them.
    """
    if multiple < 1:
        raise InputError(f"multiple={multiple} must be 1 or more")
    prices = {}
    for g in anatomy.groups:
        cost = unit_cost(g, resource, length)
        counts = [*range(0, g.size, multiple), g.size]
        prices[g.name] = {count: count * cost for count in counts if count >= min(g.least, g.size)}
    return prices


def _options(group: UnitGroup, scores: Scores, prices: Prices) -> _Options:
    units, table = scores.values.get(group.name), prices.get(group.name)
    if units is None or units.numel() != group.size:
        raise InputError(f"scores: none for {group.name}, or not {group.size} of them; they belong to another model")
    if not table:
        raise InputError(f"prices: none for {group.name}; give {{kept units: cost}} for every group")
    for count, cost in table.items():
        if not min(group.least, group.size) <= count <= group.size:
            raise InputError(f"prices: {group.name} has {group.size} units and cannot keep {count}")
        if not 0 <= cost < math.inf:
            raise InputError(f"prices: {cost} for {count} units of {group.name} must be finite and not negative")
    ranked = torch.argsort(units, descending=True, stable=True)
    worth = [0.0, *itertools.accumulate(units[ranked].tolist())]
    # Widest first: of equal values the knapsack takes the first.
    counts = sorted(table, reverse=True)
    return _Options(group, ranked, counts, [float(table[c]) for c in counts], [worth[c] for c in counts])


def _check(options: list[_Options], anatomy: Anatomy, prices: Prices, budget: float, length: float) -> None:
    if not (math.isfinite(length) and length > 0):
        raise InputError(f"length={length} must be positive")
    if not options:
        raise InputError("the model has no units left to prune")
    if unknown := sorted(prices.keys() - {g.name for g in anatomy.groups}):
        raise InputError(f"prices: {unknown[0]!r} is no unit group of the model")
    if not (math.isfinite(budget) and budget > 0):
        raise BudgetError(f"budget={budget} must be above 0 and finite")
    # A plan that keeps nothing is refused, as in `search`: one unit of some group must fit.
    used = [[cost for cost, count in zip(o.costs, o.counts, strict=True) if count] for o in options]
    step = min((min(costs) - min(o.costs) for o, costs in zip(options, used, strict=True) if costs), default=math.inf)
    least = math.fsum(min(o.costs) for o in options) + step
    if math.isinf(least):
        raise InputError("prices: no group has a width above 0")
    if least > budget * _ROUNDING:
        raise BudgetError(
            f"budget of {budget:.6g} cannot be met: the smallest feasible one is {least * _ROUNDING:.12g}; "
            f"raise the budget or price narrower widths"
        )


def _fill(options: list[_Options], extra: list[list[float]], chosen: list[int], room: float) -> None:
    """Spend what rounding up has left over, in place: the most valuable wider option that fits, again and again."""
    room -= math.fsum(cost[c] for cost, c in zip(extra, chosen, strict=True))
    while True:
        best = None
        for i, (o, cost, now) in enumerate(zip(options, extra, chosen, strict=True)):
            for c in range(now):  # the wider options stand before the chosen one
                gain, price = o.values[c] - o.values[now], cost[c] - cost[now]
                if gain >= 0 and price <= room and (best is None or (gain, -price) > best[:2]):
                    best = gain, -price, i, c
        if best is None:
            return
        room += best[1]
        chosen[best[2]] = best[3]
