"""Plans that also leave out layers or tokens, or narrow the hidden width or the heads: costs depend on other units.

Layers, tokens and the hidden width multiply with all other axes, so that no unit has a price of its own. Instead their
numbers of kept units are tried, best units first: for each combination the blocks that remain are searched under the
budget, and the combination of the highest total score wins. Widths are tried in steps of 1/32, or one by one where
nothing else may be cut. So are the tokens that come out of the last layer: the layers between lose them in equal parts,
and the first none. Where every stage has a width of its own, all shrink in proportion: whatever a stage puts out passes
through it, so that scores do not tell how many channels it needs.

Dimensions of heads are searched at the price that they have while all heads stay. That counts twice what lies in a head
and a dimension that both go. Query heads are searched with their part of the key/value head, which only the last of its
readers takes with it. So the budget for such a search is tightened until the plan keeps the given one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from pyprune.core.anatomy import Anatomy, Block, TokenGroup
from pyprune.core.budget import Budget, Limit
from pyprune.core.errors import BudgetError, InputError
from pyprune.core.limits import granule
from pyprune.core.plan import Plan
from pyprune.core.scores import Scores
from pyprune.core.units import UnitCost, UnitGroup, group_kind

# How finely the hidden width is tried beside other axes, and the widths of stages alone.
_STEPS = 32
_FINE_STEPS = 256
# How often the range of a tightened budget is halved: to one part in 16 million.
_HALVINGS = 24
# A share of 1 must keep everything: sums of the same floats in another order differ in the last bits.
_ROUNDING = 1 + 1e-12

Find = Callable[[Anatomy, Budget, dict[str, int]], Plan]


def search_jointly(
    scores: Scores,
    anatomy: Anatomy,
    budget: Budget,
    length: float,
    least: Mapping[str, int],
    find: Find,
    multiple_of: int = 1,
    uniform: bool = False,
    settled: Mapping[str, torch.Tensor] | None = None,
) -> Plan:
    """The best plan for an `anatomy` with layer groups, hidden widths or groups of tokens.

    `least[name]` units of every group stay, and `settled[name]` are the units of a group that is not searched (the
    vocabulary). `uniform` asks for a plan that the family's config can describe, with what a stage's layers hold in
    proportion to its width. `find` searches an anatomy of blocks alone under an absolute budget and floors. Raises
    BudgetError when no combination meets the budget, InputError when a group has no scores.
    """
    limits = budget.absolute(anatomy, length)
    absolute = Budget(tuple(Limit(resource, amount * _ROUNDING, False) for resource, amount in limits.items()))
    whole = [group.units for group in anatomy.layer_groups]
    whole += [anatomy.hidden.units] if anatomy.hidden else []
    inner = {name for width in anatomy.stage_widths for name in width.inner if uniform}
    free = [block.units for block in anatomy.blocks if block.units.name not in inner]
    pinned = all(least[group.name] == group.size for group in free)
    everything = {block.units.name: torch.arange(block.units.size) for block in anatomy.blocks} | dict(settled or {})
    best: tuple[float, float] | None = None
    chosen = Plan({}, {}, length)
    choices = [_best(group, scores, _counts(group, least[group.name], multiple_of, pinned)) for group in whole]
    if anatomy.stage_widths:
        choices.append(_in_proportion(anatomy, scores, least, multiple_of, pinned, uniform))
    kinds = dict.fromkeys(group_kind(group.units) for group in anatomy.token_groups)
    for kind in kinds:
        stack = [group for group in anatomy.token_groups if group_kind(group.units) == kind]
        choices.append(_schedules(stack, scores, least, pinned))
    for chosen_of in itertools.product(*choices):
        kept = {name: units for one in chosen_of for name, units in one.items()}
        meta = {**scores.meta, "uniform": True} if inner else dict(scores.meta)
        plan = Plan(everything | kept, {g.name: g.size for g in anatomy.groups}, length, meta)
        if not pinned:
            remaining = _remaining(anatomy, kept)
            floors = {g.name: least[g.name] for g in remaining.groups}
            try:
                left = _left_for_blocks(absolute, plan, anatomy)
                blocks = _find_at_prices(find, remaining, left, floors, length)
            except BudgetError:
                continue
            plan.kept |= blocks.kept
            plan.meta = blocks.meta
        spent = {resource: plan.cost(anatomy, resource) for resource in limits}
        if any(spent[resource] > limit * _ROUNDING for resource, limit in limits.items()):
            continue
        rank = (value_of(plan, anatomy, scores), next(iter(spent.values())))
        if best is None or rank > best:
            best, chosen = rank, plan
    if best is None:
        raise BudgetError(
            f"budget of {' and '.join(map(str, budget.limits))} cannot be met by the axes that may be cut; raise it, "
            "lower the floors, or allow more axes"
        )
    chosen.meta |= {"budget": budget.to_dict()}
    return chosen


def _find_at_prices(find: Find, anatomy: Anatomy, budget: Budget, least: dict[str, int], length: float) -> Plan:
    """The plan that `find` gives for prices of their own, under the widest budget for which it keeps `budget`."""
    if not any(block.units.cost.within or block.shared for block in anatomy.blocks):
        return find(anatomy, budget, least)
    apart = replace(anatomy, blocks=tuple(_apart(block) for block in anatomy.blocks))
    whole = {"flops": apart.flops(length), "params": float(apart.params())}
    found, low, high = None, 0.0, 1.0
    share = 1.0
    for _ in range(_HALVINGS):
        limits = tuple(Limit(limit.resource, share * whole[limit.resource], False) for limit in budget.limits)
        try:
            plan = find(apart, Budget(limits), least)
        except BudgetError:
            low = share
        else:
            if all(plan.cost(anatomy, limit.resource) <= limit.amount for limit in budget.limits):
                found, low = plan, share
            else:
                high = share
        if low == 1.0:
            break
        share = (low + high) / 2
    if found is None:
        raise BudgetError("the floors alone exceed the budget")  # search_jointly says which budget
    return found


def _apart(block: Block) -> Block:
    """`block` with all that its units cost in one price, which each of them has alone."""
    cost, also = block.units.cost, block.units.cost.also
    params = cost.params + (also.params if also else 0)
    if block.shared and block.units.size:
        params += block.shared.units.cost.params * block.shared.units.size / block.units.size
    return replace(
        block, units=replace(block.units, cost=replace(cost, params=params, within="", also=None)), shared=None
    )


def _best(group: UnitGroup, scores: Scores, counts: list[int]) -> list[dict[str, torch.Tensor]]:
    """The best units of a group, for each number of them."""
    order = ranked(group, scores)
    return [{group.name: order[:count].sort().values} for count in counts]


def _schedules(
    stack: list[TokenGroup], scores: Scores, least: Mapping[str, int], pinned: bool
) -> list[dict[str, torch.Tensor]]:
    """Tokens that the layers of a stack see, from all of them to the fewest: the best of those that are left."""
    sizes = [group.units.size for group in stack]
    floors = [least[group.units.name] for group in stack]
    orders = [ranked(group.units, scores) for group in stack]
    step = 1 if pinned else max(1, sizes[0] // _STEPS)
    found: dict[tuple[int, ...], dict[str, torch.Tensor]] = {}
    for lost in (*range(0, sizes[0], step), sizes[0] - 1):
        counts: list[int] = []
        for i in reversed(range(len(stack))):
            even = sizes[0] - round(lost * i / max(1, len(stack) - 1)) if len(stack) > 1 else sizes[0] - lost
            # A later layer's floor is one for those before it.
            counts.insert(0, min(sizes[i], max(even, floors[i], *counts[:1])))
        left = set(stack[0].positions)
        kept = {}
        for group, order, count in zip(stack, orders, counts, strict=True):
            units = [unit for unit in order.tolist() if group.positions[unit] in left][:count]
            left = {group.positions[unit] for unit in units}
            kept[group.units.name] = torch.tensor(sorted(units))
        found.setdefault(tuple(counts), kept)
    return list(found.values())


def _in_proportion(
    anatomy: Anatomy, scores: Scores, least: Mapping[str, int], multiple_of: int, pinned: bool, uniform: bool
) -> list[dict[str, torch.Tensor]]:
    """The best units of the widths of all stages, the same share of each: from all to the fewest."""
    sizes = {group.name: group for group in anatomy.groups}
    stages = [[w.units, *(sizes[name] for name in w.inner if uniform)] for w in anatomy.stage_widths]
    orders = {group.name: ranked(group, scores) for groups in stages for group in groups}
    most = max(groups[0].size for groups in stages)
    step = max(1, most // (_FINE_STEPS if pinned else _STEPS))
    found: dict[tuple[int, ...], dict[str, torch.Tensor]] = {}
    for left in range(most, 0, -step):
        kept = {}
        for groups in stages:
            parts = math.gcd(*(group.size for group in groups))  # groups of one stage lose so many parts alike
            grain = math.lcm(*(_grain(group, group.size // parts, multiple_of) for group in groups))
            floor = max(math.ceil(least[group.name] * parts / group.size) for group in groups)
            count = parts if left == most else max(floor, parts * left // most // grain * grain)
            kept |= {group.name: orders[group.name][: count * group.size // parts].sort().values for group in groups}
        found.setdefault(tuple(map(len, kept.values())), kept)
    return list(found.values())


def _grain(group: UnitGroup, units: int, multiple_of: int) -> int:
    """How many times `units` have to go so that what stays is a multiple of the group's granule."""
    step = granule(group, multiple_of)
    return step // math.gcd(step, units)


def ranked(group: UnitGroup, scores: Scores) -> torch.Tensor:
    """Units of `group`, best first; InputError when `scores` has none for it."""
    values = scores.values.get(group.name)
    if values is None or values.numel() != group.size:
        raise InputError(
            f"scores: none for {group.name}, or not {group.size} of them; score with the axes that are to be cut"
        )
    return torch.argsort(values, descending=True, stable=True)


def _counts(group: UnitGroup, least: int, multiple_of: int, pinned: bool) -> list[int]:
    """Numbers of kept units to try, all of them first."""
    step = 1
    if group.axis == "hidden":
        step = multiple_of if pinned else max(multiple_of, group.size // _STEPS // multiple_of * multiple_of)
    return [group.size, *(n for n in range((group.size - 1) // step * step, 0, -step) if least <= n < group.size)] + (
        [0] if least == 0 else []
    )


def _remaining(anatomy: Anatomy, kept: Mapping[str, torch.Tensor]) -> Anatomy:
    """The blocks of the layers that stay, at the cost that the kept width leaves of them."""
    lost = anatomy.lost_layers(kept)
    share = len(kept[anatomy.hidden.units.name]) / anatomy.hidden.units.size if anatomy.hidden else 1.0
    counts = {name: len(units) for name, units in kept.items()}
    shares = {w.units.name: counts[w.units.name] / w.units.size for w in anatomy.stage_widths}
    blocks = tuple(
        _priced(block, _between(anatomy.cost_left(block.units.cost, counts), shares), share)
        for block in anatomy.blocks
        if block.layer_path not in lost
    )
    layers = tuple(path for path in anatomy.layers if path not in lost)
    return replace(
        anatomy,
        layers=layers,
        blocks=blocks,
        layer_groups=(),
        hidden=None,
        stage_widths=(),
        token_groups=(),
        vocabulary=None,
    )


def _between(cost: UnitCost, shares: Mapping[str, float]) -> UnitCost:
    """`cost` of a unit that also pays for the other half of its weights to stages of which these `shares` stay."""
    params, macs, others = cost.params, cost.flops(1) / 2, []
    for other, weights, positions in cost.shared:
        if other not in shares:
            others.append((other, weights, positions))
            continue
        paid = weights * (2 * shares[other] - 1)
        params += paid
        macs += paid * (positions or 0)
    if len(others) == len(cost.shared):
        return cost
    return UnitCost(params, tokens=macs / params, shared=tuple(others))


def _left_for_blocks(absolute: Budget, plan: Plan, anatomy: Anatomy) -> Budget:
    """What the vocabulary and the stages' widths that `plan` keeps leave of the budget."""
    if anatomy.vocabulary is None and not anatomy.stage_widths:
        return absolute
    kept = anatomy.counts(plan.kept | {block.units.name: torch.arange(0) for block in anatomy.blocks})
    spent = {"flops": anatomy.flops(plan.length, kept), "params": anatomy.params(kept)}
    left = (replace(limit, amount=limit.amount - spent[limit.resource]) for limit in absolute.limits)
    return Budget(tuple(left))


def _priced(block: Block, cost: UnitCost, share: float) -> Block:
    """`block` at `cost`, with this share of its weights."""
    units = replace(block.units, cost=replace(_share_of(cost, share), image=""))
    if block.shared is None:
        return replace(block, units=units)
    shared = block.shared.units
    shared = replace(block.shared, units=replace(shared, cost=_share_of(shared.cost, share)))
    return replace(block, units=units, shared=shared)


def _share_of(cost: UnitCost, share: float) -> UnitCost:
    weights: Any = {n: getattr(cost, n) * share for n in ("params", "key_params", "table_params", "per_pass")}
    return replace(cost, **weights, also=_share_of(cost.also, share) if cost.also else None)


def value_of(plan: Plan, anatomy: Anatomy, scores: Scores) -> float:
    """Summed score of what stays; units of a layer that is left out go with it, and groups without scores are whole.

    Of patches it is less the score of those that go, once each.
    """
    lost = anatomy.lost_layers(plan.kept)
    gone = {block.units.name for block in anatomy.blocks if block.layer_path in lost}
    apart = gone | {group.units.name for group in anatomy.token_groups}
    scored = {name: units for name, units in plan.kept.items() if name in scores.values and name not in apart}
    kept = sum(float(scores.values[name][units].sum()) for name, units in scored.items())
    return kept - _patches_lost(plan, anatomy, scores, lost)


def _patches_lost(plan: Plan, anatomy: Anatomy, scores: Scores, lost: frozenset[str]) -> float:
    """Summed score of the patches that go, each in the first layer that does not see it: behind it they are gone."""
    seen, left, total = anatomy.tokens_seen(plan.kept), dict[str, set[int]](), 0.0
    for group in anatomy.token_groups:
        if group.layer not in lost:
            before = left.get(group_kind(group.units), set(group.positions))
            now = left[group_kind(group.units)] = set(seen[group.units.name])
            values = zip(group.positions, scores.values[group.units.name].tolist(), strict=True)
            total += sum(value for position, value in values if position in before - now)
    return total
