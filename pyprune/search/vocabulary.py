"""Plans that also leave out tokens, which have no price in common with heads or neurons: how often one was seen says
nothing about what a neuron is worth.

So tokens go in an order: first those that the calibration data never used, then units of the other axes, and used
tokens only where these cannot meet the budget. Of tokens seen equally often the one of the highest number goes first,
and none before what is made of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from pyprune.core.anatomy import Anatomy
from pyprune.core.budget import Budget, unit_cost
from pyprune.core.errors import BudgetError
from pyprune.core.plan import Plan
from pyprune.core.scores import Scores
from pyprune.core.units import UnitGroup
from pyprune.search.joint import Find, ranked, search_jointly

_ROUNDING = 1 + 1e-12


def search_vocabulary(
    scores: Scores,
    anatomy: Anatomy,
    budget: Budget,
    length: float,
    least: Mapping[str, int],
    find: Find,
    multiple_of: int = 1,
    uniform: bool = False,
) -> Plan:
    """The plan for an `anatomy` with a vocabulary, of which as many tokens stay as the order above allows.

    Their number is a multiple of `multiple_of`, or all; the arguments are those of `search_jointly`. Raises BudgetError
    when the budget cannot be met, or counts FLOPs alone where tokens have none.
    """
    assert anatomy.vocabulary is not None, "the axis was asked for"
    group = anatomy.vocabulary.units
    if not any(unit_cost(group, limit.resource, length) for limit in budget.limits):
        raise BudgetError(
            "the vocabulary of this model costs no FLOPs: give a budget of parameters, or leave out vocab"
        )
    order = anatomy.vocabulary.closed(ranked(group, scores).tolist())
    values = scores.values[group.name]
    used = len(anatomy.vocabulary.closed(token for token in order if values[token] > 0))
    counts = [n for n in range(multiple_of, group.size, multiple_of) if n >= least[group.name]] + [group.size]
    enough = next(i for i, n in enumerate(counts) if n >= used)
    limits = budget.absolute(anatomy, length)
    whole = {g.name: g.size for g in anatomy.all_groups}

    def fits(count: int) -> bool:
        kept = whole | {group.name: count}
        spent = {"flops": anatomy.flops(length, kept), "params": anatomy.params(kept)}
        return all(spent[resource] <= limit * _ROUNDING for resource, limit in limits.items())

    def searched(count: int) -> Plan | None:
        tokens = torch.tensor(order[:count]).sort().values
        try:
            settled = {group.name: tokens}
            return search_jointly(scores, anatomy, budget, length, least, find, multiple_of, uniform, settled)
        except BudgetError:
            return None

    most = _last(counts[enough:], fits)
    if most is not None:
        plan = Plan.keep_all(anatomy, length)
        plan.kept[group.name] = torch.tensor(order[:most]).sort().values
        plan.meta = {"budget": budget.to_dict(), **scores.meta}
        return plan
    plans: dict[int, Plan | None] = {}

    def possible(count: int) -> bool:
        plans[count] = searched(count)
        return plans[count] is not None

    most = counts[enough] if possible(counts[enough]) else _last(counts[:enough], possible)
    found = None if most is None else plans[most]
    if found is None:
        raise _infeasible(group, budget, counts[0])
    return found


def check_vocabulary(anatomy: Anatomy, budget: Budget, length: float, least: Mapping[str, int]) -> None:
    """Raise BudgetError when the tokens that stay in any case are too many, whatever `least` lets go besides.

    And for a budget of FLOPs alone where tokens have none.
    """
    assert anatomy.vocabulary is not None, "the axis was asked for"
    group = anatomy.vocabulary.units
    if not any(unit_cost(group, limit.resource, length) for limit in budget.limits):
        raise BudgetError(
            "the vocabulary of this model costs no FLOPs: give a budget of parameters, or leave out vocab"
        )
    lost = min((least[stack.units.name] / max(stack.units.size, 1) for stack in anatomy.layer_groups), default=1.0)
    stays = {g.name: least[g.name] for g in anatomy.groups if lost == 1 or g is group or g is _width(anatomy)}
    kept = {g.name: stays.get(g.name, 0) for g in anatomy.all_groups}
    spent = {"flops": anatomy.flops(length, kept), "params": anatomy.params(kept)}
    if any(spent[resource] > limit * _ROUNDING for resource, limit in budget.absolute(anatomy, length).items()):
        raise _infeasible(group, budget, least[group.name])


def _width(anatomy: Anatomy) -> UnitGroup | None:
    return anatomy.hidden.units if anatomy.hidden else None


def _infeasible(group: UnitGroup, budget: Budget, least: int) -> BudgetError:
    return BudgetError(
        f"budget of {' and '.join(map(str, budget.limits))} cannot be met: {least} of {group.size} tokens stay in any "
        "case, and with them the other axes cannot save enough; raise it, lower the floors, or allow more axes"
    )


def _last(counts: Sequence[int], good: Callable[[int], bool]) -> int | None:
    """The last of ascending `counts` that is good, where all that come before a good one are; None: none is."""
    low, high = 0, len(counts)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if good(counts[middle]) else (low, middle)
    return counts[low - 1] if low else None
