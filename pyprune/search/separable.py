"""The exact best plan for additive scores under one or several budgets.

Units of one *cost class* (all heads, all neurons) cost the same, so a best plan keeps the highest scores of each class
and only the numbers per class are open. All counts of every class but the largest are tried, and the largest class
fills what is left of the budget (Kwon et al. 2022, algorithm 1, whose published code asks for at least one head and
knows no floors).
Prefix sums give every count's value at once.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from pyprune.core.anatomy import Anatomy, UnitGroup
from pyprune.core.budget import Budget, amount_text, unit_cost
from pyprune.core.errors import BudgetError, InputError
from pyprune.core.plan import Plan
from pyprune.core.scores import Scores

# A share of 1 must keep everything: sums of the same floats in another order differ in the last bits.
_ROUNDING = 1 + 1e-12

# Counts of the smaller classes that are tried at once: 1e7 float64 values, 80 MB.
_MOST_COMBINATIONS = 10_000_000


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
) -> Plan:
    """The plan of the highest total score that keeps every limit of `budget`; never over, and less than one unit under.

    `length` is the sequence length at which FLOPs count. `floor` units stay in every group (or in the groups that it
    names). Raises BudgetError with the smallest feasible amount when the floors alone exceed the budget.
    """
    budget = Budget.parse(budget)
    check_feasible(budget, anatomy, length, floor)
    limits = budget.absolute(anatomy, length)
    forced = {g.name: _forced(g, scores, floor) for g in anatomy.groups}
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
    return Plan(
        {name: torch.tensor(units, dtype=torch.int64) for name, units in kept.items()},
        {g.name: g.size for g in anatomy.groups},
        length,
        {"budget": budget.to_dict(), **scores.meta},
    )


def _forced(group: UnitGroup, scores: Scores, floor: int | Mapping[str, int]) -> list[int]:
    least = _least(floor, group)
    values = scores.values.get(group.name)
    if values is None or values.numel() != group.size:
        raise InputError(f"scores: none for {group.name}, or not {group.size} of them; they belong to another model")
    return torch.argsort(values, descending=True, stable=True)[: min(least, group.size)].tolist()


def check_feasible(budget: Budget, anatomy: Anatomy, length: float, floor: int | Mapping[str, int] = 0) -> None:
    """Raise BudgetError, with the smallest feasible amount, when the floors alone exceed the budget.

    Without floors one unit must fit: a plan that keeps nothing is refused.
    """
    if not (math.isfinite(length) and length > 0):
        raise InputError(f"length={length} must be positive")
    groups = [g for g in anatomy.groups if g.size]
    if not groups:
        raise InputError("the model has no units left to prune")
    if not isinstance(floor, int) and (unknown := sorted(floor.keys() - {g.name for g in anatomy.groups})):
        raise InputError(f"floor: {unknown[0]!r} is no unit group of the model")
    limits = budget.absolute(anatomy, length)
    forced = [(g, min(_least(floor, g), g.size)) for g in groups]
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


def _least(floor: int | Mapping[str, int], group: UnitGroup) -> int:
    least = floor if isinstance(floor, int) else floor.get(group.name, 0)
    if least < 0:
        raise InputError(f"floor={least} must not be negative")
    return max(least, group.least)


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


def _best_counts(classes: list[_Class], room: Mapping[str, float]) -> list[int]:
    *small, large = classes
    combinations = math.prod(len(cls.prefix) for cls in small)
    if combinations > _MOST_COMBINATIONS:
        raise InputError(
            f"search: {len(classes)} different unit costs give {combinations:.1e} combinations, "
            f"more than {_MOST_COMBINATIONS:.0e}"
        )
    counts = (
        torch.cartesian_prod(*[torch.arange(len(cls.prefix)) for cls in small])
        if small
        else torch.zeros(1, 0, dtype=torch.int64)
    )
    counts = counts.view(combinations, len(small))
    value = torch.zeros(combinations, dtype=torch.float64)
    spent = {resource: torch.zeros_like(value) for resource in room}
    for column, cls in enumerate(small):
        value += cls.prefix[counts[:, column]]
        for resource in room:  # int64 times a Python float would be float32, too coarse for FLOPs
            spent[resource] += counts[:, column].double() * cls.cost[resource]
    feasible = torch.ones(combinations, dtype=torch.bool)
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
