"""act_fwd_stats: literal table, activations over the whole range of numbers, moments that must not cancel."""

import pytest
import torch

import pyprune.ops as ops
from pyprune.core.errors import InputError
from pyprune.ops.act_fwd_stats import ACTS, KERNEL_DTYPES, activate, bytes_moved, reference
from pyprune.testing import numerics

BACKENDS = pytest.mark.parametrize(
    "backend", [r.backend for r in ops.table() if r.op == "act_fwd_stats" and r.available and r.backend != "triton"]
)
KERNELS = pytest.mark.parametrize(
    "backend", [r.backend for r in ops.table() if r.op == "act_fwd_stats" and r.available and r.backend == "cpp"]
)
EACH_ACT = pytest.mark.parametrize("act", ACTS)


@BACKENDS
@pytest.mark.parametrize("dtype", KERNEL_DTYPES, ids=str)
def test_literal(backend, dtype):
    pre = torch.tensor([[[-1.0, 2.0], [3.0, 4.0]]], dtype=dtype)
    up = torch.tensor([[[5.0, 6.0], [7.0, -8.0]]], dtype=dtype)
    mask = torch.tensor([[2.0, -1.0]])
    with ops.backend(backend):
        after = ops.act_fwd_stats(pre, up, "relu", mask, stats=True)
        before = ops.act_fwd_stats(pre, up, "relu", mask, mask_before=True)
    numerics.exact(after[0], torch.tensor([[[0.0, -12.0], [42.0, 32.0]]], dtype=dtype))
    numerics.exact(after[1], torch.tensor([[21.0, 10.0]]))
    numerics.exact(after[2], torch.tensor([[882.0, 968.0]]))
    numerics.exact(after[3], torch.tensor([[42.0, 44.0]]))
    numerics.exact(before[0], torch.tensor([[[0.0, 0.0], [42.0, 0.0]]], dtype=dtype))
    assert [s.shape for s in before[1:]] == [(0,)] * 3


def every(dtype):
    """All 65,536 numbers of a 16-bit dtype."""
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)


@KERNELS
@EACH_ACT
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_16_bit_number(backend, act, dtype):
    """Value and slope are float64's, rounded to fp32's precision and then to the dtype; infinities give the limits."""
    x = every(dtype)
    with ops.backend(backend):
        value = ops.act_fwd_stats(x[None, None], act=act)[0].flatten()
        slope = ops.act_bwd_maskgrad(torch.ones_like(x)[None, None], x[None, None], act=act)[0].flatten()
    assert bool(value[x.isnan()].isnan().all())
    real = ~x.isnan()
    wide = x[real].double().requires_grad_()
    truth = activate(wide, act)
    (true_slope,) = torch.autograd.grad(truth.sum(), wide)
    if act == "relu":
        true_slope = (wide > 0).double()
    ends = x[real].isinf()
    limits = (x[real][ends] > 0).double()
    numerics.exact(slope[real][ends].double(), limits)
    numerics.exact(value[real][ends].double(), torch.where(limits > 0, torch.inf, 0.0).double())
    for found, exact, size in ((value, truth, wide.abs()), (slope, true_slope, torch.ones_like(wide))):
        found, exact = found[real][~ends].double(), exact.detach()[~ends]
        # A rounding of the dtype at the result, and of fp32 at what the formula adds up: |x| for values, 1 for slopes.
        allowed = torch.finfo(dtype).eps * exact.abs() + torch.finfo(torch.float32).eps * size.detach()[~ends].clamp(
            max=16
        )
        tiny = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
        assert bool(((found - exact).abs() <= allowed + tiny).all())


@KERNELS
@EACH_ACT
def test_float32_range(backend, act):
    """Against torch's own float32, over the range where activations bend, and subnormal and huge numbers."""
    x = torch.cat([torch.linspace(-20, 20, 100_001), torch.tensor([-1e30, 1e30, -1e-40, 1e-40, 0.0, -3e38, 3e38])])
    for part in (x[:-7], x[-7:]):
        with ops.backend(backend):
            value = ops.act_fwd_stats(part[None, None], act=act)[0]
            slope = ops.act_bwd_maskgrad(torch.ones_like(part)[None, None], part[None, None], act=act)[0]
        numerics.budget(value.flatten(), activate(part.double(), act), activate(part, act))
        args = part.double()[None, None], act
        truth = torch.ops.pyprune.act_bwd_maskgrad(torch.ones_like(args[0]), args[0], None, act)[0].flatten()
        with ops.backend("torch"):
            same = ops.act_bwd_maskgrad(torch.ones_like(part)[None, None], part[None, None], act=act)[0].flatten()
        numerics.budget(slope.flatten(), truth, same)


@KERNELS
def test_small_gelu_tails_are_exact_relative_to_themselves(backend):
    """x erf(x) in fp32 has no correct digit below -5; the tail here keeps its own."""
    x = torch.linspace(-12, -5, 4001)
    with ops.backend(backend):
        found = ops.act_fwd_stats(x[None, None])[0].flatten()
    exact = x.double() * torch.special.log_ndtr(x.double()).exp()
    error = ((found.double() - exact) / exact).abs().max()
    # The rounding of x^2 / 2 is 72 eps at -12.
    assert error <= 100 * torch.finfo(torch.float32).eps


@BACKENDS
@pytest.mark.parametrize("tokens", [100, 1300])
def test_moments_do_not_cancel(backend, tokens):
    """Mean 10^4 and deviation 1: the difference of sum(x^2) / n and mean^2 has no digit in float32."""
    x = 1e4 + torch.randn(2, tokens, 5, generator=torch.Generator().manual_seed(0))
    with ops.backend(backend):
        _, mean, m2, l1 = ops.act_fwd_stats(x, act="relu", stats=True)
    _, true_mean, true_m2, true_l1 = reference(x.double(), None, "relu", None, False, None, True)
    numerics.ratio(mean, true_mean)
    numerics.ratio(l1, true_l1)
    numerics.ratio(m2, true_m2, torch.float16)


@BACKENDS
def test_statistics_are_those_of_the_stored_result(backend):
    x = torch.randn(2, 600, 9, generator=torch.Generator().manual_seed(0)).bfloat16()
    with ops.backend(backend):
        out, mean, m2, l1 = ops.act_fwd_stats(x, act="silu", stats=True)
    stored = out.double()
    numerics.ratio(mean, stored.mean(1))
    numerics.ratio(m2, stored.var(1, correction=0) * 600)
    numerics.ratio(l1, stored.abs().sum(1))


def test_a_mask_shared_by_samples_gets_their_sum():
    x = torch.randn(3, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    shared = torch.ones(4, dtype=torch.float64, requires_grad=True)
    own = torch.ones(3, 4, dtype=torch.float64, requires_grad=True)
    for m in (shared, own):
        ops.act_fwd_stats(x, act="gelu", mask=m)[0].square().sum().backward()
    numerics.ratio(shared.grad, own.grad.sum(0))


def test_statistics_have_no_gradient():
    x = torch.ones(1, 2, 3, requires_grad=True)
    out, *statistics = ops.act_fwd_stats(x, stats=True)
    assert out.requires_grad
    assert not any(s.requires_grad for s in statistics)


def test_bad_arguments():
    with pytest.raises(InputError, match="act_fwd_stats: act 'tanh' is unknown"):
        ops.act_fwd_stats(torch.ones(1, 2, 3), act="tanh")
    with pytest.raises(InputError, match=r"act_fwd_stats: cu_seqlens must be int32 or int64 \[B \+ 1\]"):
        ops.act_fwd_stats(torch.ones(2, 3), cu_seqlens=torch.empty(0, dtype=torch.int64))


def test_bytes():
    x = torch.empty(2, 3, 8, dtype=torch.bfloat16)
    assert bytes_moved(x) == 2 * 96
    assert bytes_moved(x, x, stats=True) == 3 * 96 + 3 * 4 * 2 * 8
