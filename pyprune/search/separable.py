"""The exact best plan for additive scores under one or several budgets.

Units of one *cost class* (all heads, all neurons) cost the same, so a best plan keeps the highest scores of each class
and only the numbers per class are open. All counts of every class but the largest are tried, and the largest class
fills what is left of the budget (Kwon et al. 2022, algorithm 1, whose published code asks for at least one head and
knows no floors).
Prefix sums give every count's value at once. Models of several stacks have more classes than can be tried in full:
there the counts near the densest filling are tried, and the plan is the best of those.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from pyprune.core.anatomy import Anatomy
from pyprune.core.budget import Budget, amount_text, unit_cost
from pyprune.core.errors import BudgetError, InputError
from pyprune.core.limits import floors
from pyprune.core.plan import Plan
from pyprune.core.scores import Scores
from pyprune.core.units import UnitGroup
from pyprune.search.alike import Alike
from pyprune.search.rounding import round_widths

# A share of 1 must keep everything: sums of the same floats in another order differ in the last bits.
_ROUNDING = 1 + 1e-12

# Counts of the smaller classes that are tried at once: 3e6 of 8 bytes for each class and budget, 200 MB for 6 classes.
_MOST_COMBINATIONS = 3_000_000


@dataclass
class _Class:
    """Units that cost the same, best first; `prefix[k]` is the summed score of the first k free units."""

    cost: dict[str, float]
    unit_of: list[tuple[str, int]]
    prefix: torch.Tensor


def search(
    scores: Scores,
    anatomy: Anatomy,
    budget: Budget | Mapping[str, float | str],
    length: float,
    floor: int | Mapping[str, int] = 0,
    multiple_of: int = 1,
    uniform: bool = False,
) -> Plan:
    """The plan of the highest total score that keeps every limit of `budget`; never over, and less than one unit under.

    `length` is the sequence length at which FLOPs count. `floor` units stay in every group (or in the groups that it
    names). With `multiple_of`, every group's channels are a multiple of it or all of them (`round_widths`). With
    `uniform`, all layers of a stack share one shape. Raises BudgetError with the smallest feasible amount when the
    floors alone exceed the budget.
    """
    budget = Budget.parse(budget)
    if uniform:
        alike = Alike(scores, anatomy)
        lowest = alike.floors(floors(anatomy, floor))
        return alike.spread(search(alike.scores, alike.anatomy, budget, length, lowest, multiple_of), scores)
    least = floors(anatomy, floor, multiple_of=multiple_of)
    check_feasible(budget, anatomy, length, least)
    limits = budget.absolute(anatomy, length)
    forced = {g.name: _forced(g, scores, least[g.name]) for g in anatomy.groups}
    room = {
        r: limit * _ROUNDING - sum(unit_cost(g, r, length) * len(forced[g.name]) for g in anatomy.groups)
        for r, limit in limits.items()
    }
    classes = _cost_classes(anatomy, scores, forced, limits, length)
    taken = _best_counts(classes, room)

    kept = {name: list(units) for name, units in forced.items()}
    for cls, count in zip(classes, taken, strict=True):
        for name, unit in cls.unit_of[:count]:
            kept[name].append(unit)
    if multiple_of > 1:
        counts = {name: len(units) for name, units in kept.items()}
        ample = {r: limit * _ROUNDING for r, limit in limits.items()}
        counts = round_widths(counts, scores.values, anatomy, ample, length, least, multiple_of)
        kept = {g.name: _forced(g, scores, counts[g.name]) for g in anatomy.groups}
    return Plan(
        {name: torch.tensor(units, dtype=torch.int64) for name, units in kept.items()},
        {g.name: g.size for g in anatomy.groups},
        length,
        {"budget": budget.to_dict(), **scores.meta},
    )


def _forced(group: UnitGroup, scores: Scores, least: int) -> list[int]:
    values = scores.values.get(group.name)
    if values is None or values.numel() != group.size:
        raise InputError(f"scores: none for {group.name}, or not {group.size} of them; they belong to another model")
    return torch.argsort(values, descending=True, stable=True)[:least].tolist()


def check_feasible(budget: Budget, anatomy: Anatomy, length: float, floor: int | Mapping[str, int] = 0) -> None:
    """Raise BudgetError, with the smallest feasible amount, when the floors alone exceed the budget.

    Without floors one unit must fit: a plan that keeps nothing is refused.
    """
    if not (math.isfinite(length) and length > 0):
        raise InputError(f"length={length} must be positive")
    groups = [g for g in anatomy.groups if g.size]
    if not groups:
        raise InputError("the model has no units left to prune")
    limits = budget.absolute(anatomy, length)
    least_of = floors(anatomy, floor)
    forced = [(g, least_of[g.name]) for g in groups]
    for limit in budget.limits:
        cost = {g.name: unit_cost(g, limit.resource, length) for g in groups}
        least = sum(cost[g.name] * count for g, count in forced) or min(cost.values())
        if least > limits[limit.resource] * _ROUNDING:
            dense = anatomy.flops(length) if limit.resource == "flops" else anatomy.params()
            share = math.ceil(least / dense * 1e6) / 1e4
            raise BudgetError(
                f"budget of {limit} cannot be met: the smallest feasible one is {share:.4f}% "
                f"({amount_text(least)} {limit.resource}); lower the floors or raise the budget"
            )
    if not any(count for _, count in forced) and not any(
        all(unit_cost(g, r, length) <= limit * _ROUNDING for r, limit in limits.items()) for g in groups
    ):
        raise BudgetError(f"budget of {' and '.join(map(str, budget.limits))}: no unit fits both limits; raise one")


def _cost_classes(
    anatomy: Anatomy, scores: Scores, forced: Mapping[str, list[int]], limits: Mapping[str, float], length: float
) -> list[_Class]:
    members: dict[tuple[float, ...], list[tuple[float, str, int]]] = defaultdict(list)
    for g in anatomy.groups:
        cost = tuple(unit_cost(g, r, length) for r in limits)
        values = scores.values[g.name].tolist()
        fixed = set(forced[g.name])
        members[cost] += [(values[u], g.name, u) for u in range(g.size) if u not in fixed]
    classes = []
    for cost, units in members.items():
        units.sort(key=lambda unit: -unit[0])
        prefix = torch.tensor([0.0, *itertools.accumulate(value for value, _, _ in units)], dtype=torch.float64)
        classes.append(_Class(dict(zip(limits, cost, strict=True)), [(name, u) for _, name, u in units], prefix))
    return sorted(classes, key=lambda cls: len(cls.unit_of))


def _ranges(classes: list[_Class], room: Mapping[str, float]) -> list[list[int]]:
    """The counts to try of every class but the last: all, or as many around the densest filling as can be tried."""
    small = [len(cls.prefix) for cls in classes[:-1]]
    if math.prod(small) <= _MOST_COMBINATIONS:
        return [list(range(n)) for n in small]
    near = 0
    while math.prod(min(n, 2 * near + 3) for n in small) <= _MOST_COMBINATIONS:
        near += 1
    centres = _densest(classes, room)
    starts = [max(0, min(c - near, n - 2 * near - 1)) for c, n in zip(centres, small, strict=False)]
    return [list(range(s, min(n, s + 2 * near + 1))) for s, n in zip(starts, small, strict=True)]


def _densest(classes: list[_Class], room: Mapping[str, float]) -> list[int]:
    """Counts of every class when units are taken by what they are worth for their cost, as long as they fit.

    Of several budgets the one that a unit uses up most counts.
    """
    shares = [max(cls.cost[r] / max(limit, 1e-300) for r, limit in room.items()) for cls in classes]
    units = [
        (float(gain) / share, i)
        for i, (cls, share) in enumerate(zip(classes, shares, strict=True))
        for gain in cls.prefix.diff()
    ]
    units.sort(key=lambda unit: -unit[0])
    taken, left = [0] * len(classes), dict(room)
    for _, i in units:
        if all(classes[i].cost[r] <= limit for r, limit in left.items()):
            taken[i] += 1
            left = {r: limit - classes[i].cost[r] for r, limit in left.items()}
    return taken


def _best_counts(classes: list[_Class], room: Mapping[str, float]) -> list[int]:
    *small, large = classes
    ranges = _ranges(classes, room)
    counts = torch.cartesian_prod(*map(torch.tensor, ranges)) if small else torch.zeros(1, 0, dtype=torch.int64)
    counts = counts.view(math.prod(map(len, ranges)), len(small))
    value = torch.zeros(len(counts), dtype=torch.float64)
    spent = {resource: torch.zeros_like(value) for resource in room}
    for column, cls in enumerate(small):
        value += cls.prefix[counts[:, column]]
        for resource in room:  # int64 times a Python float would be float32, too coarse for FLOPs
            spent[resource] += counts[:, column].double() * cls.cost[resource]
    feasible = torch.ones(len(counts), dtype=torch.bool)
    fill = torch.full_like(value, len(large.unit_of))
    for resource, limit in room.items():
        left = limit - spent[resource]
        feasible &= left >= 0
        fill = torch.minimum(fill, (left / large.cost[resource]).floor())
    fill.clamp_(min=0)
    value = torch.where(feasible, value + large.prefix[fill.long()], -torch.inf)
    # Scores of zero make ties: the plan that uses more of the first budget wins, which keeps it within one unit.
    first = next(iter(room))
    used = spent[first] + fill * large.cost[first]
    best = torch.where(value == value.max(), used, -torch.inf).argmax()
    return [*counts[best].tolist(), int(fill[best])]
