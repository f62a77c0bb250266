"""knapsack: a hand table, brute force with its ties, real costs rounded up, and what is refused."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pyprune.ops as ops
from pyprune.core.errors import InputError
from pyprune.testing import numerics

AVAILABLE = [row.backend for row in ops.table() if row.op == "knapsack" and row.available]
BACKENDS = pytest.mark.parametrize("backend", AVAILABLE)


def arguments(groups, budget):
    """From [[(value, cost), ...], ...]."""
    options = list(itertools.chain(*groups))
    values = torch.tensor([v for v, _ in options], dtype=torch.float64)
    costs = torch.tensor([c for _, c in options], dtype=torch.int64)
    return values, costs, torch.tensor([0, *map(len, groups)]).cumsum(0), budget


@BACKENDS
@pytest.mark.parametrize(
    ("groups", "budget", "expected"),
    [
        ([[(0, 0), (3, 2), (5, 4)], [(0, 0), (4, 3)]], 5, [1, 1]),  # 3 + 4 at 5; 5 + 4 would cost 7
        ([[(0, 0), (3, 2), (5, 4)], [(0, 0), (4, 3)]], 4, [2, 0]),  # 5 at 4, not 4 at 3
        ([[(0, 0), (3, 2), (5, 4)], [(0, 0), (4, 3)]], 0, [0, 0]),
        ([[(1, 1), (2, 9)]], 8, [0]),  # too dear on its own
        ([[(-1, 0), (-5, 0)], [(-2, 1)]], 1, [0, 0]),  # negative values
        ([[(1, 0), (1, 0)], [(2, 0), (2, 0), (3, 5)]], 4, [0, 0]),  # the first of equals
        ([[(0, 0), (1, 1)], [(0, 0), (1, 1)]], 1, [1, 0]),  # equal sums: the last group has the lower option
        ([], 3, []),
    ],
)
def test_literal(backend, groups, budget, expected):
    with ops.backend(backend):
        numerics.exact(ops.knapsack(*arguments(groups, budget)), torch.tensor(expected, dtype=torch.int64))


@BACKENDS
@settings(deadline=None, max_examples=60)
@given(data=st.data(), sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4), budget=st.integers(0, 40))
def test_equals_brute_force(backend, data, sizes, budget):
    """Small integers are exact in every order of summation, and full of ties: the choice, not only its value."""
    option = st.tuples(st.integers(-3, 3), st.integers(0, 15))
    groups = [data.draw(st.lists(option, min_size=size, max_size=size)) for size in sizes]
    best = None
    for choice in itertools.product(*map(range, sizes)):
        taken = [group[o] for group, o in zip(groups, choice, strict=True)]
        if sum(c for _, c in taken) <= budget:
            # Highest value, then the lowest option in the last group, in the last but one, ...
            key = -sum(v for v, _ in taken), choice[::-1]
            best = key if best is None else min(best, key)
    with ops.backend(backend):
        if best is None:
            with pytest.raises(InputError, match="cheapest"):
                ops.knapsack(*arguments(groups, budget))
        else:
            assert ops.knapsack(*arguments(groups, budget)).tolist() == list(best[1][::-1])


@BACKENDS
@pytest.mark.parametrize("options", [256, 257, 1000])
def test_choices_beyond_a_byte(backend, options):
    group = [(k, k) for k in range(options)]
    with ops.backend(backend):
        assert ops.knapsack(*arguments([group, group], 2 * options)).tolist() == [options - 1] * 2


@settings(deadline=None, max_examples=200)
@given(
    costs=st.lists(st.floats(0, 1e6), min_size=1, max_size=30),
    share=st.floats(1e-3, 1.5),
    bins=st.sampled_from([1, 7, 1000, 10_000]),
)
def test_costs_round_up(costs, share, bins):
    """What fits in whole units fits: cost <= units * unit, to the rounding of a float."""
    budget = share * max(costs)
    whole, most = ops.quantise_costs(torch.tensor(costs, dtype=torch.float64), budget, bins)
    assert 0 <= most <= bins
    if not budget:
        assert whole.tolist() == [int(c > 0) for c in costs]
        return
    fits = [(w, c) for w, c in zip(whole.tolist(), costs, strict=True) if w <= most]
    assert all(c <= budget * (1 + 1e-12) * w / most if w else c == 0 for w, c in fits)
    # And hardly more than up: less than one unit.
    assert all(w - 1 <= c * bins / budget * (1 + 1e-12) for w, c in zip(whole.tolist(), costs, strict=True))


@pytest.mark.parametrize("unit", [1.0, 0.1, 2 / 3, 31.47 * 2 * 768, 1e-7])
def test_multiples_of_one_unit_lose_nothing(unit):
    counts = torch.tensor([0, 3, 7, 12, 64, 3072])
    whole, most = ops.quantise_costs(counts * torch.tensor(unit, dtype=torch.float64), 3072 * unit)
    numerics.exact(whole, counts)
    assert most == 3072


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": torch.ones(3)}, "values must be torch.float64"),
        ({"costs": torch.ones(3)}, "costs must be torch.int64"),
        ({"costs": torch.ones(2, dtype=torch.int64)}, "do not belong together"),
        ({"costs": torch.tensor([0, -1, 0])}, "negative, got -1"),
        ({"values": torch.tensor([0, torch.nan, 0], dtype=torch.float64)}, "NaN or Inf"),
        ({"values": torch.tensor([-1.7e308, 0, -1.7e308], dtype=torch.float64)}, "sum overflows"),
        ({"offsets": torch.tensor([0, 2])}, "rise from 0 to 3"),
        ({"offsets": torch.tensor([0, 3, 3])}, "an option in every group"),
        ({"offsets": torch.tensor([1, 3])}, "rise from 0 to 3"),
        ({"budget": -1}, "budget=-1"),
        ({"costs": torch.tensor([4, 5, 3]), "budget": 6}, "below the cheapest options' total of 7"),
        ({"budget": 2**40}, "quantise costs to fewer bins"),
    ],
)
def test_bad_arguments(change, message):
    values, costs, offsets, budget = arguments([[(0, 0), (1, 1)], [(1, 0)]], 5)
    given_ = {"values": values, "costs": costs, "offsets": offsets, "budget": budget, **change}
    with pytest.raises(InputError, match=message):
        ops.knapsack(**given_)


@pytest.mark.parametrize(
    ("costs", "budget", "bins"), [([-1.0], 1, 9), ([float("inf")], 1, 9), ([1.0], -1, 9), ([1.0], 1, 0)]
)
def test_bad_real_costs(costs, budget, bins):
    with pytest.raises(InputError, match="quantise_costs"):
        ops.quantise_costs(torch.tensor(costs), budget, bins)
