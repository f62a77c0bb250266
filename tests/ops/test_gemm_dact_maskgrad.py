"""gemm_dact_maskgrad: literal table, then autograd of a feed-forward block, then the op it is made of."""

import pytest
import torch

import pyprune.ops as ops
from pyprune.core.errors import InputError
from pyprune.ops.act_fwd_stats import ACTS, KERNEL_DTYPES, activate
from pyprune.ops.gemm_dact_maskgrad import bytes_moved, flops, reference
from pyprune.testing import numerics


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", [*KERNEL_DTYPES, torch.float64], ids=str)
def test_literal(dtype):
    make = lambda *rows: torch.tensor([rows], dtype=dtype)  # noqa: E731
    dy = make([1.0, 2.0], [3.0, -1.0])
    w2 = make([10.0, -5.0, 1.0], [2.0, 4.0, 0.0])[0]
    pre, up = make([-1.0, 2.0, 3.0], [4.0, -2.0, 1.0]), make([5.0, 6.0, -1.0], [1.0, 2.0, 3.0])
    sums = torch.float64 if dtype == torch.float64 else torch.float32
    # dA = [[14, 3, 1], [28, -19, 3]]
    dpre, dup, after, before = ops.gemm_dact_maskgrad(dy, w2, pre, act="relu")
    numerics.exact(dpre, make([0.0, 3.0, 1.0], [28.0, 0.0, 3.0]))
    assert dup.shape == (0,)
    numerics.exact(after, torch.tensor([[112.0, 6.0, 6.0]], dtype=sums))
    numerics.exact(before, torch.tensor([[112.0, 6.0, 6.0]], dtype=sums))
    dpre, dup, after, before = ops.gemm_dact_maskgrad(dy, w2, pre, up, "relu")
    numerics.exact(dpre, make([0.0, 18.0, -1.0], [28.0, 0.0, 9.0]))
    numerics.exact(dup, make([0.0, 6.0, 3.0], [112.0, 0.0, 3.0]))
    numerics.exact(after, torch.tensor([[112.0, 36.0, 6.0]], dtype=sums))
    numerics.exact(before, torch.tensor([[112.0, 36.0, 6.0]], dtype=sums))


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("gated", [False, True])
def test_autograd_of_masked_blocks_says_the_same(act, gated):
    pre, up = (normal(2, 9, 5, seed=s, dtype=torch.float64).requires_grad_() for s in range(2))
    w2, dy = normal(3, 5, seed=2, dtype=torch.float64), normal(2, 9, 3, seed=3, dtype=torch.float64)
    into, out_of = (torch.ones(2, 1, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    a = activate(pre * into, act) * (up if gated else 1) * out_of
    y = torch.nn.functional.linear(a, w2)
    expected = torch.autograd.grad(y, [pre, *([up] if gated else []), out_of, into], dy)
    found = reference(dy, w2, pre.detach(), up.detach() if gated else None, act, None)
    for f, e in zip((t for t in found if t.numel()), expected, strict=True):
        numerics.ratio(f.squeeze(), e.squeeze())


def test_it_is_a_product_and_act_bwd_maskgrad():
    """To the bit, where the kernel is not asked for."""
    offsets = torch.tensor([2, 9, 9, 20])
    dy, w2, pre, up = normal(21, 6), normal(6, 10, seed=1), normal(21, 10, seed=2), normal(21, 10, seed=3)
    found = ops.gemm_dact_maskgrad(dy, w2, pre, up, "silu", offsets)
    for f, e in zip(found, ops.act_bwd_maskgrad(dy @ w2, pre, up, "silu", cu_seqlens=offsets), strict=True):
        numerics.exact(f, e)


def test_the_kernel_waits_to_be_chosen():
    by_backend = {c.backend: c for c in ops.OPS["gemm_dact_maskgrad"].candidates}
    assert by_backend["triton"].on_request
    assert {r.backend for r in ops.table() if r.op == "gemm_dact_maskgrad"} == {"triton", "torch"}


def test_no_tokens_and_no_width():
    dpre, dup, after, before = ops.gemm_dact_maskgrad(torch.ones(2, 0, 3), torch.ones(3, 4), torch.ones(2, 0, 4))
    assert dpre.shape == (2, 0, 4)
    assert dup.shape == (0,)
    for t in (after, before):
        numerics.exact(t, torch.zeros(2, 4))
    dpre, *_ = ops.gemm_dact_maskgrad(torch.ones(2, 3, 0), torch.ones(0, 4), torch.ones(2, 3, 4))
    numerics.exact(dpre, torch.zeros(2, 3, 4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"w2": torch.ones(6, 4)}, r"w2 must be \[d, F\] = \[d, 6\].* got \[6, 4\]"),
        ({"w2": torch.ones(6)}, "w2 must be"),
        ({"w2": torch.ones(5, 6)}, r"dy must be \[2, 3, 5\] for w2 and pre, got \[2, 3, 4\]"),
        ({"dy": torch.ones(6, 4)}, "dy must be"),
        ({"dy": torch.ones(2, 3, 4).half()}, "dy must be like pre, torch.float32 on cpu, got torch.float16"),
        ({"w2": torch.ones(4, 6).half()}, "w2 must be like pre"),
        ({"up": torch.ones(2, 3, 5)}, "up must be like pre"),
        ({"act": "swish"}, "act 'swish' is unknown"),
        ({"cu_seqlens": torch.tensor([0, 2])}, r"pre must be \[N_tok, F\] with cu_seqlens"),
    ],
)
def test_bad_arguments(change, message):
    with pytest.raises(InputError, match=f"gemm_dact_maskgrad: {message}"):
        ops.gemm_dact_maskgrad(
            **{"dy": torch.ones(2, 3, 4), "w2": torch.ones(4, 6), "pre": torch.ones(2, 3, 6), **change}
        )


def test_bad_offsets():
    with pytest.raises(InputError, match="gemm_dact_maskgrad: cu_seqlens must not decrease"):
        ops.gemm_dact_maskgrad(torch.ones(4, 3), torch.ones(3, 6), torch.ones(4, 6), cu_seqlens=torch.tensor([2, 1]))


def test_bytes_and_flops():
    dy, w2, pre = (torch.empty(*shape, dtype=torch.bfloat16) for shape in ((2, 3, 4), (4, 8), (2, 3, 8)))
    assert bytes_moved(dy, w2, pre) == 2 * (24 + 32 + 2 * 48) + 2 * 2 * 8 * 4
    assert bytes_moved(dy, w2, pre, pre) == 2 * (24 + 32 + 4 * 48) + 2 * 2 * 8 * 4
    assert flops(dy, w2, pre) == 2 * 6 * 4 * 8 + 6 * 48
