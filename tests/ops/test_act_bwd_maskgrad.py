"""act_bwd_maskgrad: literal table, then autograd, then what the mask gradients are equal to."""

import pytest
import torch
import torch.nn.functional as F

import pyprune.ops as ops
from pyprune.core.errors import InputError
from pyprune.ops.act_bwd_maskgrad import bytes_moved, reference
from pyprune.ops.act_fwd_stats import ACTS, KERNEL_DTYPES
from pyprune.testing import numerics

BACKENDS = pytest.mark.parametrize(
    "backend", [r.backend for r in ops.table() if r.op == "act_bwd_maskgrad" and r.available and r.backend != "triton"]
)
EACH_ACT = pytest.mark.parametrize("act", ACTS)


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@BACKENDS
@pytest.mark.parametrize("dtype", KERNEL_DTYPES, ids=str)
def test_literal(backend, dtype):
    pre = torch.tensor([[[-1.0, 2.0], [3.0, 4.0]]], dtype=dtype)
    up = torch.tensor([[[5.0, 6.0], [7.0, -8.0]]], dtype=dtype)
    grad = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]], dtype=dtype)
    mask = torch.tensor([2.0, -1.0])
    with ops.backend(backend):
        plain = ops.act_bwd_maskgrad(grad, pre, act="relu")
        gated = ops.act_bwd_maskgrad(grad, pre, up, "relu", mask)
        before = ops.act_bwd_maskgrad(grad, pre, up, "relu", mask, mask_before=True)
    numerics.exact(plain[0], torch.tensor([[[0.0, 2.0], [3.0, 4.0]]], dtype=dtype))
    assert plain[1].shape == (0,)
    numerics.exact(plain[2], torch.tensor([[9.0, 20.0]]))
    numerics.exact(plain[3], torch.tensor([[9.0, 20.0]]))
    numerics.exact(gated[0], torch.tensor([[[0.0, -12.0], [42.0, 32.0]]], dtype=dtype))
    numerics.exact(gated[1], torch.tensor([[[0.0, -4.0], [18.0, -16.0]]], dtype=dtype))
    numerics.exact(gated[2], torch.tensor([[63.0, -104.0]]))
    numerics.exact(gated[3], torch.tensor([[126.0, 104.0]]))
    # z = pre * mask = [[-2, -2], [6, -4]]
    numerics.exact(before[0], torch.tensor([[[0.0, 0.0], [42.0, 0.0]]], dtype=dtype))
    numerics.exact(before[1], torch.tensor([[[0.0, 0.0], [18.0, 0.0]]], dtype=dtype))
    numerics.exact(before[2], torch.tensor([[126.0, 0.0]]))
    numerics.exact(before[3], torch.tensor([[63.0, 0.0]]))


@EACH_ACT
@pytest.mark.parametrize("mask_before", [False, True])
def test_the_definition_is_what_autograd_says(act, mask_before):
    pre, up, grad = (normal(2, 9, 5, seed=s, dtype=torch.float64) for s in range(3))
    m = normal(2, 5, seed=3, dtype=torch.float64)
    one = torch.ones_like(m)
    into, out_of = (m, one) if mask_before else (one, m)
    leaves = [t.clone().requires_grad_() for t in (pre, up, into, out_of)]
    a = {"silu": F.silu, "gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "relu": F.relu}[act]
    out = a(leaves[0] * leaves[2][:, None]) * leaves[1] * leaves[3][:, None]
    dpre, dup, before, after = torch.autograd.grad(out, leaves, grad)
    for found, expected in zip(
        reference(grad, pre, up, act, m, mask_before, None), (dpre, dup, after, before), strict=True
    ):
        numerics.ratio(found, expected)


@EACH_ACT
@BACKENDS
def test_sums_equal_weight_times_gradient(backend, act):
    """Euler's identity: grouped Taylor scores from activations alone."""
    x = normal(2, 37, 6)
    gate, up, down = (
        normal(*shape, seed=s).double().requires_grad_() for s, shape in enumerate(((8, 6), (8, 6), (4, 8)), 1)
    )
    pre, u = x.double() @ gate.T, x.double() @ up.T
    out, *_ = ops.act_fwd_stats(pre, u, act)
    y = out @ down.T
    weight = normal(2, 37, 4, seed=9).double()
    grads = torch.autograd.grad((y * weight).sum(), (gate, up, down))
    with ops.backend(f"act_bwd_maskgrad={backend}"):
        given = ((weight @ down).detach(), pre.detach(), u.detach())
        _, _, after, before = ops.act_bwd_maskgrad(*(t.float() for t in given), act)
    s1, s2 = after.sum(0), before.sum(0)
    numerics.ratio(s1, (down * grads[2]).sum(0).detach())
    numerics.ratio(s1, (up * grads[1]).sum(1).detach())
    numerics.ratio(s2, (gate * grads[0]).sum(1).detach())


@BACKENDS
@EACH_ACT
def test_a_masked_unit_has_no_gradient_but_its_mask_has(backend, act):
    pre, up, grad = (normal(2, 37, 8, seed=s) for s in range(3))
    mask = torch.tensor([1.0, 0.0] * 4)
    with ops.backend(backend):
        masked = ops.act_bwd_maskgrad(grad, pre, up, act, mask)
        bare = ops.act_bwd_maskgrad(grad, pre, up, act)
    for m, b in zip(masked[:2], bare[:2], strict=True):
        numerics.exact(m[..., 1::2], torch.zeros(2, 37, 4))
        numerics.exact(m[..., ::2], b[..., ::2])
    numerics.exact(masked[2], bare[2])


@BACKENDS
def test_permuted_units_give_permuted_results(backend):
    pre, up, grad = (normal(2, 37, 64, seed=s) for s in range(3))
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    with ops.backend(backend):
        first = ops.act_bwd_maskgrad(grad, pre, up, "gelu")
        second = ops.act_bwd_maskgrad(grad[..., order], pre[..., order], up[..., order], "gelu")
    for f, s in zip(first, second, strict=True):
        numerics.exact(s, f[..., order])


def test_tokens_of_no_sample_get_zero():
    pre, grad = (torch.full((4, 2), torch.nan) for _ in range(2))
    dpre, _, after, _ = ops.act_bwd_maskgrad(grad, pre, cu_seqlens=torch.tensor([2, 2]))
    numerics.exact(dpre, torch.zeros(4, 2))
    numerics.exact(after, torch.zeros(1, 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grad": torch.ones(2, 3, 5)}, "grad must be like pre"),
        ({"up": torch.ones(2, 3, 6).half()}, "up must be like pre"),
        ({"act": "swish"}, "act 'swish' is unknown; choose from silu"),
        ({"mask": torch.ones(5)}, r"mask must be floating, \[F\] = \[6\] or \[B, F\] = \[2, 6\]"),
        ({"mask": torch.ones(6, dtype=torch.bool)}, "mask must be floating"),
        ({"cu_seqlens": torch.tensor([0, 2])}, r"pre must be \[N_tok, F\] with cu_seqlens"),
        ({"pre": torch.ones(2, 3, 6).int(), "grad": torch.ones(2, 3, 6).int()}, "pre must be float32"),
    ],
)
def test_bad_arguments(change, message):
    with pytest.raises(InputError, match=message):
        ops.act_bwd_maskgrad(**{"grad": torch.ones(2, 3, 6), "pre": torch.ones(2, 3, 6), **change})


@pytest.mark.parametrize(
    ("offsets", "message"), [([0, 9], "stay within 4"), ([2, 1], "not decrease"), ([-1, 2], "within")]
)
def test_bad_offsets(offsets, message):
    with pytest.raises(InputError, match=message):
        ops.act_bwd_maskgrad(torch.ones(4, 6), torch.ones(4, 6), cu_seqlens=torch.tensor(offsets))


def test_bytes():
    x = torch.empty(2, 3, 8, dtype=torch.bfloat16)
    assert bytes_moved(x, x) == 3 * 96 + 2 * 2 * 8 * 4
    assert bytes_moved(x, x, x) == 5 * 96 + 2 * 2 * 8 * 4
