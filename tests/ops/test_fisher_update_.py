"""fisher_update_: a hand table, accumulation over calls and in float64, and what is refused."""

import pytest
import torch

import pyprune.ops as ops
from pyprune.core.errors import InputError
from pyprune.testing import numerics

AVAILABLE = [row.backend for row in ops.table() if row.op == "fisher_update_" and row.available]
BACKENDS = pytest.mark.parametrize("backend", [b for b in AVAILABLE if b != "triton"])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])


@BACKENDS
@DTYPES
@pytest.mark.parametrize(
    ("scale", "expected"), [(None, [1.0 + 1 + 9, 0.0 + 4 + 16]), ([1.0, 0.5], [1.0 + 1 + 2.25, 0.0 + 4 + 4])]
)
def test_literal(backend, dtype, scale, expected):
    sums = torch.tensor([1.0, 0.0])
    with ops.backend(backend):
        ops.fisher_update_(sums, torch.tensor([[1.0, 2], [3, -4]], dtype=dtype), scale and torch.tensor(scale))
    numerics.exact(sums, torch.tensor(expected))


@BACKENDS
def test_calls_add_up_to_one(backend):
    """Small integers: exact whatever the order."""
    g = torch.randint(-8, 9, (700, 33), generator=torch.Generator().manual_seed(0)).float()
    whole, parts = torch.zeros(33), torch.zeros(33)
    with ops.backend(backend):
        ops.fisher_update_(whole, g)
        for part in g.split(97):
            ops.fisher_update_(parts, part)
    numerics.exact(parts, whole)


@BACKENDS
def test_small_terms_behind_a_large_one_are_not_lost(backend):
    """16^2 + 1000 * 1e-3^2 in fp32 would stay 16^2; in float64 it does not."""
    g = torch.full((1001, 3), 1e-3)
    g[0] = 16.0
    sums = torch.zeros(3, dtype=torch.float64)
    with ops.backend(backend):
        ops.fisher_update_(sums, g)
    numerics.ratio(sums - 16.0**2, torch.full((3,), 1000 * float(torch.tensor(1e-3)) ** 2, dtype=torch.float64),
                   torch.float32)  # fmt: skip


@BACKENDS
def test_nothing_to_add_changes_nothing(backend):
    sums = torch.tensor([1.0, torch.inf])
    with ops.backend(backend):
        ops.fisher_update_(sums, torch.empty(0, 2))
    numerics.exact(sums, torch.tensor([1.0, torch.inf]))


def test_gradients_stay_out():
    g = torch.ones(2, 3, requires_grad=True)
    sums = torch.zeros(3)
    ops.fisher_update_(sums, g)
    assert not sums.requires_grad
    numerics.exact(sums, torch.full((3,), 2.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"g": torch.ones(3)}, "g must be floating"),
        ({"g": torch.ones(2, 3, dtype=torch.int64)}, "g must be floating"),
        ({"F": torch.zeros(2)}, "F must be float32 or float64 \\[3\\]"),
        ({"F": torch.zeros(3, dtype=torch.bfloat16)}, "F must be float32"),
        ({"F": torch.zeros(3, requires_grad=True)}, "must not require a gradient"),
        ({"F": torch.zeros(1).expand(3)}, "must not be expanded"),
        ({"scale": torch.ones(3)}, "scale must be torch.float32 \\[2\\]"),
        ({"scale": torch.ones(2, dtype=torch.float64)}, "scale must be torch.float32"),
        ({"scale": torch.ones(2, device="meta")}, "on one device"),
    ],
)
def test_bad_arguments(change, message):
    arguments = {"F": torch.zeros(3), "g": torch.ones(2, 3), "scale": None, **change}
    with pytest.raises(InputError, match=message):
        ops.fisher_update_(**arguments)
