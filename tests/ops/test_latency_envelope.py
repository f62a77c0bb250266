"""latency_envelope: a hand table and the definition."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pyprune.ops as ops
from pyprune.core.errors import InputError
from pyprune.testing import numerics

AVAILABLE = [row.backend for row in ops.table() if row.op == "latency_envelope" and row.available]
BACKENDS = pytest.mark.parametrize("backend", AVAILABLE)
INF = float("inf")


@BACKENDS
@pytest.mark.parametrize(
    ("latency", "envelope", "index"),
    [
        ([1.0, 4, 3, 3, 5], [1.0, 3, 3, 3, 5], [0, 2, 2, 3, 4]),
        ([3.0, 2, 1], [1.0, 1, 1], [2, 2, 2]),
        ([1.0, 1, 2], [1.0, 1, 2], [0, 1, 2]),  # equal: no padding
        ([INF, 2, INF, INF], [2.0, 2, INF, INF], [1, 1, 2, 3]),
        ([[0.0, 1], [1, 0]], [[0.0, 1], [0, 0]], [[0, 1], [1, 1]]),
        ([], [], []),
    ],
)
def test_literal(backend, latency, envelope, index):
    with ops.backend(backend):
        found = ops.latency_envelope(torch.tensor(latency))
    numerics.exact(found[0], torch.tensor(envelope))
    numerics.exact(found[1], torch.tensor(index, dtype=torch.int64))


@BACKENDS
@settings(deadline=None, max_examples=60)
@given(latency=st.lists(st.integers(0, 5), min_size=1, max_size=80))
def test_definition(backend, latency):
    with ops.backend(backend):
        envelope, index = ops.latency_envelope(torch.tensor(latency, dtype=torch.float64))
    for i in range(len(latency)):
        least = min(latency[i:])
        assert float(envelope[i]) == least
        assert int(index[i]) == i + latency[i:].index(least)


@pytest.mark.parametrize(
    ("latency", "message"),
    [
        (torch.tensor([1.0, torch.nan]), "got nan"),
        (torch.tensor([1.0, -0.5]), "got -0.5"),
        (torch.tensor(1.0), "float32 or float64"),
        (torch.tensor([1, 2]), "float32 or float64"),
    ],
)
def test_bad_arguments(latency, message):
    with pytest.raises(InputError, match=message):
        ops.latency_envelope(latency)
