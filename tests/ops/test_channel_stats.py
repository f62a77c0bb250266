"""channel_stats: hand tables, data whose mean is far from its spread, masks and offsets."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pyprune.ops as ops
from pyprune.core.errors import InputError
from pyprune.ops.channel_stats import KERNEL_DTYPES, bytes_moved, flops, reference
from pyprune.testing import numerics

AVAILABLE = [row.backend for row in ops.table() if row.op == "channel_stats" and row.available]
CPU_BACKENDS = [b for b in AVAILABLE if b in ("cpp", "torch")]
BACKENDS = pytest.mark.parametrize("backend", CPU_BACKENDS)
KERNELS = pytest.mark.parametrize("backend", [b for b in CPU_BACKENDS if b != "torch"])
DTYPES = pytest.mark.parametrize("dtype", KERNEL_DTYPES, ids=lambda d: str(d).removeprefix("torch."))


def normal(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def exactly(found, *expected):
    for f, e in zip(found, expected, strict=True):
        numerics.exact(f, torch.tensor(e))


@BACKENDS
@DTYPES
def test_literal(backend, dtype):
    x = torch.tensor([[[1.0, -2, 5], [3, -2, -3], [5, -2, 4]], [[7.0, 0, 1], [1, 4, 1], [1, 8, -2]]], dtype=dtype)
    mask = torch.tensor([[True, True, True], [False, True, True]])
    with ops.backend(backend):
        mean, m2, l1 = ops.channel_stats(x)
        exactly((mean, m2, l1), [[3.0, -2, 2], [3, 4, 0]], [[8.0, 0, 38], [24, 32, 6]], [[9.0, 6, 12], [9, 12, 4]])
        masked = ops.channel_stats(x, token_mask=mask)
        exactly(masked, [[3.0, -2, 2], [1, 6, -0.5]], [[8.0, 0, 38], [0, 8, 4.5]], [[9.0, 6, 12], [2, 12, 3]])
        ragged = ops.channel_stats(x.flatten(0, 1), torch.tensor([1, 3, 3, 5]))
    exactly(
        ragged,
        [[4.0, -2, 0.5], [0, 0, 0], [4, 2, 1]],
        [[2.0, 0, 24.5], [0, 0, 0], [18, 8, 0]],
        [[8.0, 4, 7], [0, 0, 0], [8, 4, 2]],
    )


@BACKENDS
def test_no_tokens_give_zeros(backend):
    with ops.backend(backend):
        for out in ops.channel_stats(torch.full((2, 3, 4), torch.nan), None, torch.zeros(2, 3, dtype=torch.bool)):
            numerics.exact(out, torch.zeros(2, 4))
        for out in ops.channel_stats(torch.ones(5, 4), torch.tensor([2, 2])):
            numerics.exact(out, torch.zeros(1, 4))


@BACKENDS
@pytest.mark.parametrize("tokens", [100, 512, 1300])
def test_a_mean_far_from_zero(backend, tokens):
    """Mean 1e3, deviation 1e-2: E[x^2] - E[x]^2 in fp32 has no correct digit left."""
    x = 1e3 + 1e-2 * normal(2, tokens, 70)
    with ops.backend(backend):
        found = ops.channel_stats(x)
    truth, same_dtype = reference(x.double()), reference(x)
    for f, t, s in zip(found, truth, same_dtype, strict=True):
        numerics.budget(f, t, s, numerics.RUNNING_SUM)
    naive = (x**2).sum(1) - tokens * x.mean(1) ** 2
    with pytest.raises(AssertionError, match="exceeds"):
        numerics.ratio(naive, truth[1])


@BACKENDS
def test_outliers_fill_the_first_tile(backend):
    """No shift among the first rows is near the others; the error stays within that of a plain sum."""
    x = normal(2, 600, 40)
    x[:, :8] = 1e4
    with ops.backend(backend):
        for found, truth in zip(ops.channel_stats(x), reference(x.double()), strict=True):
            numerics.ratio(found, truth)


@BACKENDS
@DTYPES
def test_m2_is_never_negative(backend, dtype):
    x = normal(3, 1, 50).expand(3, 700, 50).to(dtype)
    with ops.backend(backend):
        mean, m2, _ = ops.channel_stats(x)
    numerics.ratio(mean, x[:, 0].double())
    assert (m2 >= 0).all()


@KERNELS
@DTYPES
def test_bits_do_not_depend_on_the_batch(backend, dtype):
    """All three results; a mask over padding on the right gives the bits of the ragged batch."""
    x = normal(4, 1100, 130, dtype=dtype)
    lengths = torch.tensor([1100, 37, 0, 513])
    mask = torch.arange(1100) < lengths[:, None]
    offsets = torch.tensor([0, *lengths.cumsum(0)])
    with ops.backend(backend):
        ragged = ops.channel_stats(x[mask], offsets)
        x[~mask] = torch.nan
        masked = ops.channel_stats(x, token_mask=mask)
        alone = [ops.channel_stats(x[b : b + 1, :n]) for b, n in enumerate(lengths)]
    for i in range(3):
        numerics.exact(masked[i], ragged[i])
        numerics.exact(torch.cat([stats[i] for stats in alone]), ragged[i])


@KERNELS
@pytest.mark.parametrize("count", [1, 8, 9, 500])
def test_tokens_are_taken_wherever_they_are(backend, count):
    """Real tokens at random places of a segment count as if they stood in front."""
    x, mask = normal(1, 512, 60), torch.zeros(1, 512, dtype=torch.bool)
    mask[0, torch.randperm(512, generator=torch.Generator().manual_seed(count))[:count]] = True
    with ops.backend(backend):
        for found, expected in zip(ops.channel_stats(x, None, mask), ops.channel_stats(x[mask][None]), strict=True):
            numerics.exact(found, expected)


@BACKENDS
@settings(deadline=None, max_examples=25)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=5), columns=st.integers(1, 70), seed=st.integers(0, 99)
)
def test_any_shape(backend, lengths, columns, seed):
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    x = normal(int(offsets[-1]), columns, seed=seed)
    with ops.backend(backend):
        found = ops.channel_stats(x, offsets)
    for f, t, s in zip(found, reference(x.double(), offsets), reference(x, offsets), strict=True):
        numerics.budget(f, t, s, numerics.RUNNING_SUM)


def test_the_norm_follows():
    x = normal(3, 40, 9).double()
    mean, m2, _ = ops.channel_stats(x)
    numerics.ratio((m2 + 40 * mean**2).sqrt(), x.norm(dim=1))
    numerics.ratio(m2 / 40, x.var(1, correction=0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x, mask: (x[0],), r"x must be \[B, T, N\]"),
        (lambda x, mask: (x, torch.tensor([0, 2])), "with cu_seqlens, got"),
        (lambda x, mask: (x.int(),), "got torch.int32"),
        (lambda x, mask: (x[0], torch.tensor([0, 2]), mask[:1]), "exclude each other"),
        (lambda x, mask: (x, None, mask[:, :2]), r"token_mask must be bool \[2, 3\]"),
        (lambda x, mask: (x, None, mask.long()), "got torch.int64"),
        (lambda x, mask: (x[0], torch.tensor([0, 9])), "stay within 3 tokens"),
        (lambda x, mask: (x[0], torch.tensor([-1, 2])), "stay within"),
        (lambda x, mask: (x[0], torch.tensor([2, 1])), "must not decrease"),
        (lambda x, mask: (x[0], torch.tensor([0.0, 1.0])), "int32 or int64"),
        (lambda x, mask: (x[0], torch.tensor([], dtype=torch.int64)), "int32 or int64"),
        (lambda x, mask: (x, None, mask.to("meta")), "on one device"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(InputError, match=message):
        ops.channel_stats(*make(normal(2, 3, 6), torch.ones(2, 3, dtype=torch.bool)))


def test_bytes_and_flops():
    x = normal(2, 3, 8, dtype=torch.bfloat16)
    assert bytes_moved(x) == 2 * 3 * 8 * 2 + 3 * 4 * 2 * 8
    assert bytes_moved(x, None, torch.ones(2, 3, dtype=torch.bool)) == 2 * 3 * 8 * 2 + 6 + 3 * 4 * 2 * 8
    assert flops(x) == 5 * 2 * 3 * 8
