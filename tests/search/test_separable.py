"""Exact search: brute force on small cases, the edges of the budget, and what is refused."""

import itertools
import re

import pytest
import torch
from anatomies import anatomy
from hypothesis import given, settings
from hypothesis import strategies as st

from pyprune.core.budget import Budget, unit_cost
from pyprune.core.errors import BudgetError, InputError
from pyprune.core.plan import Plan
from pyprune.core.scores import Scores
from pyprune.search import search

LENGTH = 3.0
ROUNDING = 1 + 1e-12  # a limit is a product of floats: what counts as equal to it
TOY = anatomy(("a", 3, 5, 2), ("b", 3, 5, 2), ("c", 6, 2, 0), ("d", 5, 2, 0))


def scores_of(toy, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Scores({g.name: torch.rand(g.size, generator=generator, dtype=torch.float64) for g in toy.groups})


def spent(toy, plan, resource):
    return sum(unit_cost(g, resource, LENGTH) * plan.counts[g.name] for g in toy.groups)


def value(scores, plan):
    return sum(float(scores.values[name][index].sum()) for name, index in plan.kept.items())


def best_value(toy, scores, limits, floors):
    """The highest total score over all subsets of units, tried one by one."""
    units = [(g, u) for g in toy.groups for u in range(g.size)]
    best = None
    for taken in itertools.product((False, True), repeat=len(units)):
        kept = [unit for unit, take in zip(units, taken, strict=True) if take]
        counts = {g.name: sum(h is g for h, _ in kept) for g in toy.groups}
        if any(counts[name] < least for name, least in floors.items()):
            continue
        if any(sum(unit_cost(g, r, LENGTH) for g, _ in kept) > limit * ROUNDING for r, limit in limits.items()):
            continue
        total = sum(float(scores.values[g.name][u]) for g, u in kept)
        best = total if best is None else max(best, total)
    return best


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.integers(1, 3), min_size=3, max_size=3),
    attention=st.integers(1, 4),
    levels=st.lists(st.integers(0, 4), min_size=9, max_size=9),
    flops=st.floats(0.05, 1.0),
    params=st.none() | st.floats(0.05, 1.0),
    floor=st.sampled_from([{}, {"heads": 1}, {"neurons": 1, "more": 1}]),
)
def test_equals_brute_force(sizes, attention, levels, flops, params, floor):
    toy = anatomy(("heads", sizes[0], 7, attention), ("neurons", sizes[1], 2, 0), ("more", sizes[2], 2, 0))
    scores = Scores({g.name: torch.tensor(levels[3 * i : 3 * i + g.size]) for i, g in enumerate(toy.groups)})
    budget = Budget.parse({"flops": flops} | ({} if params is None else {"params": params}))
    limits = budget.absolute(toy, LENGTH)
    try:
        plan = search(scores, toy, budget, LENGTH, floor)
    except BudgetError:
        floors = Plan({g.name: torch.arange(floor.get(g.name, 0)) for g in toy.groups}, plan_sizes(toy), LENGTH)
        over = [r for r, limit in limits.items() if spent(toy, floors, r) > limit * ROUNDING]
        lonely = not any(all(unit_cost(g, r, LENGTH) <= m * ROUNDING for r, m in limits.items()) for g in toy.groups)
        assert over or (lonely and not floor)
        return
    assert value(scores, plan) == pytest.approx(best_value(toy, scores, limits, floor), rel=1e-12)
    for resource, limit in limits.items():
        assert spent(toy, plan, resource) <= limit * ROUNDING
    assert all(plan.counts[name] >= least for name, least in floor.items())
    # Maximal, also where scores are 0: no removed unit of any group fits.
    for g in toy.groups:
        if plan.counts[g.name] < g.size:
            assert any(spent(toy, plan, r) + unit_cost(g, r, LENGTH) > m * (2 - ROUNDING) for r, m in limits.items())


def plan_sizes(toy):
    return {g.name: g.size for g in toy.groups}


@pytest.mark.parametrize("resource", ["flops", "params"])
@pytest.mark.parametrize("share", [0.17, 0.3, 0.5, 0.77, 0.99])
@pytest.mark.parametrize("scale", [1, 1_234_567])
def test_never_over_and_within_one_unit(resource, share, scale):
    toy = anatomy(("a", 12, 5 * scale, 2), ("b", 12, 5 * scale, 2), ("c", 300, 2 * scale + 1, 0))
    plan = search(scores_of(toy), toy, {resource: share}, LENGTH)
    limit = share * (toy.flops(LENGTH) if resource == "flops" else toy.params())
    assert spent(toy, plan, resource) <= limit * ROUNDING
    cheapest = min(unit_cost(g, resource, LENGTH) for g in toy.groups if plan.counts[g.name] < g.size)
    assert limit - spent(toy, plan, resource) < cheapest
    assert plan.cost(toy, resource) == spent(toy, plan, resource)


@pytest.mark.parametrize("budget", [{"flops": 1.0}, {"params": "100%"}, {"flops": 1.0, "params": 1.0}, {"flops": "9G"}])
def test_a_budget_of_everything_keeps_everything(budget):
    # Prime costs and a fractional length make sums that differ in their last bits by their order.
    toy = anatomy(("a", 3, 7, 3), ("b", 5, 11, 0), ("c", 7, 13, 0))
    assert search(scores_of(toy), toy, budget, 31.47).counts == plan_sizes(toy)


def test_scores_of_zero_use_the_budget_all_the_same():
    scores = Scores({g.name: torch.zeros(g.size) for g in TOY.groups})
    plan = search(scores, TOY, {"flops": 0.5}, LENGTH)
    assert 0.5 * TOY.flops(LENGTH) - spent(TOY, plan, "flops") < min(unit_cost(g, "flops", LENGTH) for g in TOY.groups)


def test_the_best_units_stay_in_every_group():
    scores = scores_of(TOY)
    plan = search(scores, TOY, {"flops": 0.5}, LENGTH)
    for name, index in plan.kept.items():
        worst_kept = scores.values[name][index].min() if len(index) else torch.inf
        assert (scores.values[name][~plan.mask(name)] <= worst_kept).all()


def test_a_floor_holds_in_every_group_and_keeps_its_best_units():
    scores = Scores({"a": torch.tensor([0.0, 0.1, 0.0]), "b": torch.ones(3), "c": torch.ones(6), "d": torch.ones(5)})
    plan = search(scores, TOY, {"flops": 0.5}, LENGTH, floor=1)
    assert plan.kept["a"].tolist() == [1]
    assert all(count >= 1 for count in plan.counts.values())


def test_a_floor_above_the_size_means_all():
    assert search(scores_of(TOY), TOY, {"flops": 0.9}, LENGTH, floor={"a": 99}).counts["a"] == 3


@pytest.mark.parametrize("floor", [0, 1, 2, {"a": 3, "c": 2}])
@pytest.mark.parametrize("resource", ["flops", "params"])
@pytest.mark.parametrize("scale", [1, 1_234_567])
def test_the_smallest_feasible_amount_that_is_named_is_feasible(floor, resource, scale):
    toy = anatomy(("a", 3, 5 * scale, 2), ("b", 3, 5 * scale, 2), ("c", 6, 2 * scale, 0), ("d", 5, 2 * scale, 0))
    scores = scores_of(toy)
    with pytest.raises(BudgetError) as error:
        search(scores, toy, {resource: 1e-7}, LENGTH, floor)
    share, amount = re.search(rf"smallest feasible one is (\S+) \((\S+) {resource}\)", str(error.value)).groups()
    for named in (share, amount):
        plan = search(scores, toy, {resource: named}, LENGTH, floor)
        assert sum(plan.counts.values()) >= 1
        # Nothing smaller is feasible: a millionth less is refused.
        number, suffix = float(named.rstrip("%KMGT")), named[-1]
        with pytest.raises(BudgetError):
            search(scores, toy, {resource: f"{number * (1 - 1e-4):.9f}{suffix}"}, LENGTH, floor)


def test_two_budgets_that_no_unit_meets_together():
    # "a" is cheap in parameters and dear in FLOPs, "b" the other way round: each budget alone is feasible.
    toy = anatomy(("a", 2, 1, 100), ("b", 2, 50, 0))
    scores = scores_of(toy)
    flops, params = toy.groups[1].cost.flops(LENGTH), 1
    budget = {"flops": f"{flops / 1e3}K", "params": f"{params / 1e3}K"}
    for resource, amount in budget.items():
        assert sum(search(scores, toy, {resource: amount}, LENGTH).counts.values()) == 1
    with pytest.raises(BudgetError, match="no unit fits both"):
        search(scores, toy, budget, LENGTH)


def test_the_plan_records_its_budget_and_its_scores():
    scores = Scores(scores_of(TOY).values, {"criterion": "fisher"})
    plan = search(scores, TOY, {"flops": 0.5, "params": "0.03K"}, LENGTH)
    assert plan.meta["criterion"] == "fisher"
    assert plan.length == LENGTH
    recorded = Budget.parse(plan.meta["budget"]).absolute(TOY, LENGTH)
    assert recorded == pytest.approx({"flops": 0.5 * TOY.flops(LENGTH), "params": 30.0}, rel=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"length": 0.0}, "length=0.0"),
        ({"length": float("nan")}, "length=nan"),
        ({"length": float("inf")}, "length=inf"),
        ({"floor": -1}, "floor=-1"),
        ({"floor": {"layers.7.heads": 1}}, "'layers.7.heads' is no unit group"),
        ({"scores": Scores({"a": torch.ones(3)})}, "none for b"),
        ({"scores": Scores({g.name: torch.ones(g.size + 1) for g in TOY.groups})}, "not 3 of them"),
    ],
)
def test_refusals(change, message):
    arguments = {"scores": scores_of(TOY), "anatomy": TOY, "budget": {"flops": 0.5}, "length": LENGTH, **change}
    with pytest.raises(InputError, match=re.escape(message)):
        search(**arguments)


def test_a_model_without_units_is_refused():
    toy = anatomy(("a", 0, 5, 2))
    with pytest.raises(InputError, match="no units left"):
        search(Scores({"a": torch.zeros(0)}), toy, {"flops": 0.5}, LENGTH)


def test_many_kinds_of_units_are_tried_near_the_densest_filling(monkeypatch):
    """Six classes of 200 units have 3e11 combinations; the bound of the fractional knapsack is met within one unit."""
    toy = anatomy(*[(f"g{i}", 200, 3 + i, 0) for i in range(6)])
    scores, budget = scores_of(toy), {"flops": 0.5}
    plan = search(scores, toy, budget, LENGTH)
    limit = 0.5 * toy.flops(LENGTH)
    assert limit - unit_cost(toy.groups[-1], "flops", LENGTH) < spent(toy, plan, "flops") <= limit * ROUNDING
    costs = torch.cat([torch.full((g.size,), unit_cost(g, "flops", LENGTH), dtype=torch.float64) for g in toy.groups])
    values = torch.cat([scores.values[g.name] for g in toy.groups])
    order = (values / costs).argsort(descending=True)
    fits = costs[order].cumsum(0) <= limit
    bound = float(values[order][fits].sum() + values[order][~fits][0])
    assert value(scores, plan) > bound - float(values.max())


@pytest.mark.parametrize("seed", range(5))
def test_windows_find_what_all_counts_find(monkeypatch, seed):
    toy = anatomy(("a", 9, 5, 1), ("b", 12, 3, 0), ("c", 14, 4, 0), ("d", 15, 2, 2))
    scores, budget = scores_of(toy, seed), {"flops": 0.45, "params": 0.6}
    whole = search(scores, toy, budget, LENGTH)
    monkeypatch.setattr("pyprune.search.separable._MOST_COMBINATIONS", 500)
    assert value(scores, search(scores, toy, budget, LENGTH)) == pytest.approx(value(scores, whole), rel=1e-12)


@pytest.mark.parametrize("multiple", [2, 4, 5])
@pytest.mark.parametrize("seed", range(4))
def test_widths_are_multiples_and_the_budget_is_kept_within_one_of_them(multiple, seed):
    toy = anatomy(("a", 10, 5, 2), ("b", 10, 5, 2), ("c", 36, 2, 0), ("d", 33, 2, 0))
    scores = scores_of(toy, seed)
    plan = search(scores, toy, {"flops": 0.5}, LENGTH, floor={"d": 7}, multiple_of=multiple)
    for g in toy.groups:
        assert plan.counts[g.name] % multiple == 0 or plan.counts[g.name] == g.size
        best = scores.values[g.name].argsort(descending=True)[: plan.counts[g.name]].sort().values
        assert torch.equal(plan.kept[g.name], best)
    assert plan.counts["d"] >= 7
    limit = 0.5 * toy.flops(LENGTH)
    dearest = max(unit_cost(g, "flops", LENGTH) for g in toy.groups) * multiple
    assert limit - dearest < spent(toy, plan, "flops") <= limit * ROUNDING


def test_a_rounded_floor_that_exceeds_the_budget_is_refused():
    toy = anatomy(("a", 64, 5, 0))
    with pytest.raises(BudgetError, match="smallest feasible"):
        search(scores_of(toy), toy, {"flops": 0.4}, LENGTH, floor=1, multiple_of=32)
