"""channel_stats: literal table, moments that eager formulas lose, and bad input."""

import pytest
import torch

import pyprune.ops as ops
from pyprune.core.errors import InputError
from pyprune.ops.channel_stats import KERNEL_DTYPES
from pyprune.testing import numerics

BACKENDS = pytest.mark.parametrize(
    "backend", [r.backend for r in ops.table() if r.op == "channel_stats" and r.available and r.backend != "triton"]
)
DTYPES = pytest.mark.parametrize("dtype", KERNEL_DTYPES, ids=lambda d: str(d).removeprefix("torch."))


def check(found, *expected):
    for f, e in zip(found, expected, strict=True):
        numerics.exact(f, torch.tensor(e))


@BACKENDS
@DTYPES
def test_literal(backend, dtype):
    x = torch.tensor([[[1.0, -2], [3, -2], [5, 4]], [[0.0, 8], [0, 0], [0, -8]]], dtype=dtype)
    with ops.backend(backend):
        check(
            ops.channel_stats(x), [[3.0, 0], [0, 0]], [[8.0, 24], [0, 128]], [[9.0, 8], [0, 16]]
        )  # mean; squared deviations; absolute values


@BACKENDS
def test_literal_ragged_and_masked(backend):
    x = torch.tensor([[torch.nan], [1.0], [3.0], [7.0], [torch.nan]])
    mask = torch.tensor([[False, True, True, False, False], [False, False, False, True, False]])
    with ops.backend(backend):
        expected = [[2.0], [0], [7]], [[2.0], [0], [0]], [[4.0], [0], [7]]
        check(ops.channel_stats(x, torch.tensor([1, 3, 3, 4])), *expected)
        dense = x[None].expand(2, 5, 1)
        check(ops.channel_stats(dense, None, mask), [[2.0], [7]], [[2.0], [0]], [[4.0], [7]])


@BACKENDS
@pytest.mark.parametrize("tokens", [100, 1500])
def test_deviations_far_from_zero_survive(backend, tokens):
    """Mean 1e3, deviation 1e-2: E[x^2] - E[x]^2 in fp32 is nothing but rounding."""
    noise = torch.randn(1, tokens, 50, generator=torch.Generator().manual_seed(0))
    x = 1e3 + 1e-2 * noise
    truth = x.double()
    spread = (truth - truth.mean(1, keepdim=True)).square().sum(1)
    with ops.backend(backend):
        mean, m2, l1 = ops.channel_stats(x)
    numerics.ratio(mean, truth.mean(1))
    numerics.ratio(l1, truth.abs().sum(1))
    # Rounding of a mean of 1e3 is 3e-5, 1/300 of the deviation: what M2 can lose by it, relative to itself.
    assert numerics.relative_rms(m2, spread) < 1e-4
    eager = (x.square().mean(1) - x.mean(1).square()) * tokens
    assert numerics.relative_rms(eager, spread) > 1e-1


@BACKENDS
@DTYPES
def test_a_mask_is_a_selection(backend, dtype):
    x = torch.randn(3, 40, 30, generator=torch.Generator().manual_seed(1)).to(dtype)
    mask = torch.rand(3, 40, generator=torch.Generator().manual_seed(2)) < 0.6
    with ops.backend(backend):
        masked = ops.channel_stats(x, None, mask)
        ragged = ops.channel_stats(x[mask], torch.cat([torch.zeros(1), mask.sum(1).cumsum(0)]).long())
    for m, r in zip(masked, ragged, strict=True):
        numerics.ratio(m, r.double())


@BACKENDS
def test_no_tokens_give_zeros(backend):
    with ops.backend(backend):
        for out in ops.channel_stats(torch.full((2, 3, 4), torch.nan), None, torch.zeros(2, 3, dtype=torch.bool)):
            numerics.exact(out, torch.zeros(2, 4))
        for out in ops.channel_stats(torch.ones(5, 4), torch.tensor([2, 2])):
            numerics.exact(out, torch.zeros(1, 4))


X = torch.ones(2, 3, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X[0],), r"x must be \[B, T, N\], got \[3, 4\]"),
        ((X, torch.tensor([0, 3])), "with cu_seqlens, got"),
        ((X.int(),), "float32, bfloat16, float16 or float64"),
        ((X[0], torch.tensor([0, 9])), "within 3 tokens"),
        ((X[0], torch.tensor([2, 1])), "must not decrease"),
        ((X[0], torch.tensor([0.0, 1])), "must be int32 or int64"),
        ((X[0], torch.tensor([0, 1]), torch.ones(2, 3, dtype=torch.bool)), "exclude each other"),
        ((X, None, torch.ones(2, 3)), "token_mask must be bool"),
        ((X, None, torch.ones(2, 4, dtype=torch.bool)), r"token_mask must be bool \[2, 3\]"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        ops.channel_stats(*arguments)
