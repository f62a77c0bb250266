"""The knapsack over prices of widths: brute force, agreement with the exact search, granules, and what is refused."""

import itertools
import re

import pytest
import torch
from anatomies import anatomy
from hypothesis import given, settings
from hypothesis import strategies as st

from pyprune.core.errors import BudgetError, InputError
from pyprune.core.plan import Plan
from pyprune.core.scores import Scores
from pyprune.search import knapsack, search, unit_prices

LENGTH = 3.0
ROUNDING = 1 + 1e-12
TOY = anatomy(("a", 3, 5, 2), ("b", 3, 5, 2), ("c", 6, 2, 0), ("d", 5, 2, 0))
FLAT = {g.name: {k: float(k) for k in range(g.size + 1)} for g in TOY.groups}


def scores_of(toy, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Scores({g.name: torch.rand(g.size, generator=generator, dtype=torch.float64) for g in toy.groups})


def spent(plan, prices):
    return sum(prices[name][count] for name, count in plan.counts.items())


def value(scores, plan):
    return sum(float(scores.values[name][index].sum()) for name, index in plan.kept.items())


def best_value(scores, prices, budget):
    """The highest total score over all widths, tried one by one."""
    best = None
    for counts in itertools.product(*prices.values()):
        if sum(table[k] for table, k in zip(prices.values(), counts, strict=True)) > budget * ROUNDING:
            continue
        units = (scores.values[name].sort(descending=True)[0][:k] for name, k in zip(prices, counts, strict=True))
        total = sum(float(u.sum()) for u in units)
        best = total if best is None else max(best, total)
    return best


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    tables=st.lists(
        st.dictionaries(st.integers(0, 4), st.integers(0, 40).map(float), min_size=1), min_size=3, max_size=3
    ),
    levels=st.lists(st.integers(0, 5), min_size=12, max_size=12),
    budget=st.integers(1, 90),
)
def test_equals_brute_force(tables, levels, budget):
    """Whole prices, neither linear nor rising: the optimum, exactly."""
    toy = anatomy(("a", 4, 1, 0), ("b", 4, 1, 0), ("c", 4, 1, 0))
    scores = Scores({g.name: torch.tensor(levels[4 * i : 4 * i + 4]) for i, g in enumerate(toy.groups)})
    prices = dict(zip("abc", tables, strict=True))
    try:
        plan = knapsack(scores, toy, prices, float(budget), LENGTH)
    except BudgetError:
        kept = [c for c in itertools.product(*tables) if any(c)]
        assert all(sum(t[k] for t, k in zip(tables, c, strict=True)) > budget for c in kept)
        return
    except InputError:
        assert all(set(table) == {0} for table in tables)
        return
    assert spent(plan, prices) <= budget
    assert value(scores, plan) == best_value(scores, prices, budget)
    assert plan.meta["prices"] == {"budget": budget, "spent": spent(plan, prices)}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    costs=st.lists(st.floats(0.01, 1.0), min_size=14, max_size=14),
    share=st.floats(0.3, 1.2),
    bins=st.sampled_from([10, 100, 10_000]),
)
def test_real_prices_never_exceed_the_budget(costs, share, bins):
    """Measured prices: within the budget, no worse than the best plan of what rounding up leaves, and filled."""
    toy = anatomy(("a", 6, 1, 0), ("b", 6, 1, 0))
    scores = scores_of(toy)
    prices = {"a": dict(enumerate(costs[:7])), "b": dict(enumerate(costs[7:]))}
    least = sum(min(table.values()) for table in prices.values())
    budget = least + share
    try:
        plan = knapsack(scores, toy, prices, budget, LENGTH, bins)
    except BudgetError:
        assert share < 1
        return
    assert spent(plan, prices) <= budget * ROUNDING
    assert value(scores, plan) >= best_value(scores, prices, least + (budget - least) * (1 - 2 / bins))
    room = budget - spent(plan, prices)
    for name, table in prices.items():
        now = plan.counts[name]
        assert all(k <= now or cost - table[now] > room * (2 - ROUNDING) - 1e-12 for k, cost in table.items())


@pytest.mark.parametrize("resource", ["flops", "params"])
@pytest.mark.parametrize("share", [0.17, 0.3, 0.5, 0.77, 1.0])
@pytest.mark.parametrize("length", [3.0, 31.47])
def test_uniform_costs_agree_with_search(resource, share, length):
    toy = anatomy(("a", 6, 5, 2), ("b", 6, 5, 2), ("c", 30, 5, 2), ("d", 25, 5, 2))
    scores = scores_of(toy)
    expected = search(scores, toy, {resource: share}, length)
    budget = share * (toy.flops(length) if resource == "flops" else toy.params())
    plan = knapsack(scores, toy, unit_prices(toy, resource, length), budget, length)
    assert {n: i.tolist() for n, i in plan.kept.items()} == {n: i.tolist() for n, i in expected.kept.items()}


@pytest.mark.parametrize("share", [0.17, 0.5, 0.77])
def test_two_kinds_of_units_agree_with_search(share):
    scores = scores_of(TOY)
    expected = search(scores, TOY, {"params": share}, LENGTH)
    plan = knapsack(scores, TOY, unit_prices(TOY, "params", LENGTH), share * TOY.params(), LENGTH)
    assert value(scores, plan) == pytest.approx(value(scores, expected), rel=1e-12)


def test_widths_are_multiples_of_the_granule_or_all():
    toy = anatomy(("a", 200, 3, 0), ("b", 256, 3, 0), ("c", 100, 3, 0))
    prices = unit_prices(toy, "params", LENGTH, multiple=64)
    assert list(prices["a"]) == [0, 64, 128, 192, 200]
    plan = knapsack(scores_of(toy), toy, prices, 0.6 * toy.params(), LENGTH)
    assert all(count in prices[name] for name, count in plan.counts.items())
    assert 0.4 * toy.params() < plan.cost(toy, "params") <= 0.6 * toy.params()
    for name, index in plan.kept.items():
        best = scores_of(toy).values[name].argsort(descending=True)[: len(index)]
        assert index.tolist() == sorted(best.tolist())


def test_a_cliff_is_padded_over():
    # 3 units cost more than 4: the wider one is taken.
    toy = anatomy(("a", 4, 1, 0))
    prices = {"a": {0: 0.0, 1: 1.0, 2: 1.5, 3: 9.0, 4: 2.0}}
    assert knapsack(scores_of(toy), toy, prices, 2.0, LENGTH).counts == {"a": 4}
    assert knapsack(scores_of(toy), toy, prices, 1.9, LENGTH).counts == {"a": 2}


def test_scores_of_zero_use_the_budget_all_the_same():
    scores = Scores({g.name: torch.zeros(g.size) for g in TOY.groups})
    plan = knapsack(scores, TOY, FLAT, 9.5, LENGTH)
    assert spent(plan, FLAT) == 9.0


def test_the_smallest_feasible_amount_that_is_named_is_feasible():
    prices = {**FLAT, "a": {1: 0.7, 2: 0.9}, "c": {0: 0.1, 6: 5.3}}
    for table, least in ((prices, 0.8), (FLAT, 1.0)):
        with pytest.raises(BudgetError, match="cannot be met") as error:
            knapsack(scores_of(TOY), TOY, table, 0.5, LENGTH)
        named = float(re.search(r"smallest feasible one is ([^;]+);", str(error.value))[1])
        assert named == pytest.approx(least, rel=1e-9)
        assert sum(knapsack(scores_of(TOY), TOY, table, named, LENGTH).counts.values()) == 1


def test_groups_without_units_stay_empty():
    toy = anatomy(("a", 0, 5, 2), ("b", 2, 1, 0))
    scores = Scores({"a": torch.zeros(0), "b": torch.ones(2)})
    plan = knapsack(scores, toy, {"b": {0: 0.0, 2: 1.0}}, 1.0, LENGTH)
    assert plan.counts == {"a": 0, "b": 2}
    assert isinstance(plan, Plan)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"length": 0.0}, InputError, "length=0.0"),
        ({"budget": 0.0}, BudgetError, "budget=0.0"),
        ({"budget": float("nan")}, BudgetError, "budget=nan"),
        ({"prices": {k: v for k, v in FLAT.items() if k != "b"}}, InputError, "none for b"),
        ({"prices": {**FLAT, "e": {0: 1.0}}}, InputError, "'e' is no unit group"),
        ({"prices": {**FLAT, "a": {4: 1.0}}}, InputError, "a has 3 units and cannot keep 4"),
        ({"prices": {**FLAT, "a": {2: -1.0}}}, InputError, "-1.0 for 2 units of a"),
        ({"prices": {**FLAT, "a": {2: float("nan")}}}, InputError, "nan for 2 units of a"),
        ({"prices": {g.name: {0: 0.0} for g in TOY.groups}}, InputError, "no group has a width above 0"),
        ({"scores": Scores({"a": torch.ones(3)})}, InputError, "none for b"),
    ],
)
def test_refusals(change, error, message):
    arguments = {"scores": scores_of(TOY), "anatomy": TOY, "prices": FLAT, "budget": 5.0, "length": LENGTH, **change}
    with pytest.raises(error, match=re.escape(message)):
        knapsack(**arguments)
