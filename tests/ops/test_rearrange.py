"""rearrange: a hand table, the slow loop of the publication, brute force on small cases."""

from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pyprune.ops as ops
from pyprune.core.errors import InputError, NumericsError
from pyprune.ops.rearrange import reference
from pyprune.testing import numerics

AVAILABLE = [row.backend for row in ops.table() if row.op == "rearrange" and row.available]
BACKENDS = pytest.mark.parametrize("backend", AVAILABLE)


def normal(samples, units, seed=0):
    return torch.randn(samples, units, generator=torch.Generator().manual_seed(seed))


def cost(g, kept):
    pruned = torch.ones(g.shape[1], dtype=torch.bool)
    pruned[kept] = False
    return float(g.double()[:, pruned].sum(1).square().sum())


@BACKENDS
@pytest.mark.parametrize(
    ("g", "keep", "expected"),
    [
        # Pruned {0, 1}, sum 3. Unit 2 joins: 0, -1, 3 without 0, 1, 2: 0 leaves. Unit 3: 1, 5, 0: it leaves itself.
        ([[1.0, 2, -2, 3]], 2, [0, 3]),
        # Pruned {0, 1}, sum 7. Unit 2 leaves itself (9, 8, 7 without 0, 1, 2). Unit 3: -1, -2, 7: 0 leaves.
        ([[3.0, 4, 5, -5], [0, 0, 0, 0]], 2, [0, 2]),
        # One of three to keep: pruned {0, 1}, and 2 brings the others' opposite: -1, 1, 5 without 0, 1, 2: 0 leaves.
        ([[2.0, 3, -3]], 1, [0]),
        # All equal: the lowest index leaves, each time.
        ([[1.0, 1, 1, 1]], 2, [0, 1]),
        ([[1.0, 2, 3]], 0, []),
        ([[1.0, 2, 3]], 3, [0, 1, 2]),
    ],
)
def test_literal(backend, g, keep, expected):
    with ops.backend(backend):
        numerics.exact(ops.rearrange(torch.tensor(g), keep), torch.tensor(expected, dtype=torch.int64))


@BACKENDS
@pytest.mark.parametrize(
    ("samples", "units", "keep"), [(1, 1, 1), (64, 300, 140), (7, 257, 256), (3, 600, 1), (5, 33, 31)]
)
def test_against_the_slow_loop(backend, samples, units, keep):
    g = normal(samples, units)
    with ops.backend(backend):
        kept = ops.rearrange(g, keep)
    numerics.exact(kept, reference(g.double(), keep))


@BACKENDS
@settings(deadline=None, max_examples=40)
@given(data=st.data(), samples=st.integers(1, 4), units=st.integers(1, 40))
def test_ties_fall_as_in_the_slow_loop(backend, data, samples, units):
    """Small integers are exact in every order of summation, and full of ties."""
    values = st.lists(st.integers(-2, 2), min_size=samples * units, max_size=samples * units)
    g = torch.tensor(data.draw(values), dtype=torch.float32).reshape(samples, units)
    keep = data.draw(st.integers(0, units))
    with ops.backend(backend):
        numerics.exact(ops.rearrange(g, keep), reference(g, keep))


@BACKENDS
@pytest.mark.parametrize("kind", ["twice", "mirrored", "few directions", "heavy tails", "one sign"])
@pytest.mark.parametrize("samples", [3, 64])
def test_against_the_slow_loop_where_many_units_leave(backend, kind, samples):
    """Equal columns, opposite columns and columns that hardly cancel: exact ties, and an exchange with every step."""
    g = normal(samples, 150)
    directions, lengths = normal(4, 150, 1), normal(1, 300, 2)
    g = {
        "twice": torch.cat([g, g], 1),
        "mirrored": torch.cat([g, -g], 1),
        "few directions": normal(samples, 4) @ torch.cat([directions, directions + 0.1], 1),
        "heavy tails": torch.cat([g, g.roll(1, 0)], 1) * (2 * lengths).exp(),
        "one sign": torch.cat([g, g.roll(1, 0)], 1).abs() + 1,
    }[kind]
    for keep in (1, 30, 150, 267, 299):
        with ops.backend(backend):
            numerics.exact(ops.rearrange(g, keep), reference(g, keep))


@BACKENDS
@pytest.mark.parametrize("seed", range(5))
def test_between_the_largest_units_and_the_best_set(backend, seed):
    g, keep = normal(3, 10, seed), 4
    with ops.backend(backend):
        found = cost(g, ops.rearrange(g, keep))
    best = min(cost(g, list(kept)) for kept in combinations(range(10), keep))
    largest = cost(g, g.norm(dim=0).argsort()[-keep:])
    assert best <= found <= largest


@BACKENDS
def test_improves_on_the_diagonal(backend):
    g = normal(16, 60)
    with ops.backend(backend):
        assert cost(g, ops.rearrange(g, 20)) < cost(g, g.norm(dim=0).argsort()[-20:])


@BACKENDS
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes_and_strides(backend, dtype):
    g = normal(20, 50).to(dtype)
    with ops.backend(backend):
        kept = ops.rearrange(g, 17)
        numerics.exact(ops.rearrange(g.T.contiguous().T, 17), kept)
    numerics.exact(kept, reference(g, 17))


def test_compiles_as_one_graph():
    g = normal(4, 9)
    compiled = torch.compile(lambda t: ops.rearrange(t * 2, 5) + 1, fullgraph=True)
    numerics.exact(compiled(g), ops.rearrange(g * 2, 5) + 1)


@pytest.mark.parametrize(
    ("g", "keep", "error", "message"),
    [
        (torch.ones(3), 1, InputError, "samples, units"),
        (torch.ones(2, 3, dtype=torch.int64), 1, InputError, "floating"),
        (torch.ones(2, 3), 4, InputError, "keep must be 0 to 3, got 4"),
        (torch.ones(2, 3), -1, InputError, "keep must be"),
        (torch.full((2, 3), torch.nan), 1, NumericsError, "NaN or Inf"),
        (torch.full((2, 3), -1e200, dtype=torch.float64), 1, NumericsError, "squares overflow"),
    ],
)
def test_bad_arguments(g, keep, error, message):
    with pytest.raises(error, match=message):
        ops.rearrange(g, keep)
