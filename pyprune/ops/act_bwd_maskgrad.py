"""act_bwd_maskgrad: the backward of an activation, gated or not, with the gradients of masks before and after it.

Kwon et al. (2022) put the mask on the activation's output, UPop (Shi et al. 2023) on its input. Both gradients are sums
over tokens of what the backward has in registers anyway.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, library

from pyprune.ops import _native
from pyprune.ops._dispatch import Candidate, Op, Support, detached, triton_missing
from pyprune.ops._offsets import check_offset_values
from pyprune.ops.act_fwd_stats import (
    ACTS,
    KERNEL_DTYPES,
    LIMIT,
    activate,
    check_activation,
    inside_of,
    per_sample,
    rows_contiguous,
    rows_of,
    sample_count,
    wide_dtype,
)

SCHEMA = (
    '(Tensor grad, Tensor pre, Tensor? up=None, str act="gelu", Tensor? mask=None, bool mask_before=False, '
    "Tensor? cu_seqlens=None) -> (Tensor, Tensor, Tensor, Tensor)"
)


def act_bwd_maskgrad(
    grad: Tensor,
    pre: Tensor,
    up: Tensor | None = None,
    act: str = "gelu",
    mask: Tensor | None = None,
    mask_before: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of act_fwd_stats at pre and up, and per sample those of a mask after and before the activation.

    With z = pre * mask if `mask_before` else pre, a = act(z) * up, out = a * mask unless `mask_before`, and grad =
    dL/d(out):

        after[b, f]  = sum_t a * grad          dL/d(mask on the output), at the mask's value
        before[b, f] = sum_t pre * dL/dz       dL/d(mask on the input), at its value, which is 1 unless `mask_before`

    By Euler's identity for linear maps, `after` is also sum(W * dW) over column f of the down projection and over row
    f of the up projection (of a block with `up`), and `before` over row f of the gate projection (of the up projection
    without `up`), biases left out: grouped Taylor scores with no weight gradient.

    grad, pre, up: `[B, T, F]`, or `[N_tok, F]` with cu_seqlens; the same shape, dtype (float32, bfloat16, float16;
        float64 through torch) and device. Any strides; a last dimension that is not contiguous is copied.
    act, mask, mask_before, cu_seqlens: as for `act_fwd_stats`. Tokens outside cu_seqlens are not read; their gradients
        are 0.

    Returns (dpre, dup, after, before). dpre, dup: like pre, contiguous; dup is an empty `[0]` without `up`. after,
    before: float32 `[B, F]` (float64 for float64), 0 for an empty sample. The C++ and Triton backends are
    deterministic, and a sample's bits do not depend on the rest of the batch. Not differentiable.

    Raises: InputError for shapes, dtypes, an activation or offsets that do not fit; BackendError, see
    `pyprune.ops.backend`.

    >>> x = torch.tensor([[[-1.0, 2.0], [3.0, 4.0]]])
    >>> dpre, _, after, before = act_bwd_maskgrad(torch.full_like(x, 10.0), x, act="relu")
    >>> dpre.tolist(), after.tolist(), before.tolist()
    ([[[0.0, 10.0], [10.0, 10.0]]], [[30.0, 60.0]], [[30.0, 60.0]])
    """
    return torch.ops.pyprune.act_bwd_maskgrad.default(*detached(grad, pre, up, act, mask, mask_before, cu_seqlens))


def check(grad, pre, up, act, mask, mask_before, cu_seqlens) -> None:
    check_activation("act_bwd_maskgrad", {"pre": pre, "grad": grad, "up": up}, act, mask, cu_seqlens)
    check_offset_values("act_bwd_maskgrad", cu_seqlens, pre.shape[0])


def slope(z: Tensor, act: str) -> Tensor:
    """act'(z); at infinities the limits."""
    if act == "relu":
        return torch.where(z <= 0, 0.0, 1.0).to(z.dtype)
    z, one = z.clamp(-LIMIT, LIMIT), torch.ones_like(z)
    if act == "silu":
        return torch.ops.aten.silu_backward(one, z)
    return torch.ops.aten.gelu_backward(one, z, approximate="tanh" if act == "gelu_tanh" else "none")


def reference(grad, pre, up, act, mask, mask_before, cu_seqlens):
    """The definition in torch; exact to float64 for float64 inputs."""
    wide = wide_dtype(pre.dtype)
    m = rows_of(mask, pre, cu_seqlens)
    grad, x = grad.to(wide), pre.to(wide)
    into, out_of = (m, 1.0) if mask_before else (1.0, m)
    z = x * into
    value = activate(z, act)
    gated = grad if up is None else grad * up.to(wide)
    dz = gated * out_of * slope(z, act)
    dup = pre.new_empty(0) if up is None else inside_of((grad * out_of * value).to(pre.dtype), cu_seqlens)
    dpre = inside_of((dz * into).to(pre.dtype), cu_seqlens)
    after, before = (per_sample(v, cu_seqlens, lambda v: v.sum(0)) for v in (gated * value, x * dz))
    return dpre, dup, after, before


def _prepared(run):
    def call(grad, pre, up, act, mask, mask_before, cu_seqlens):
        outputs = fake(grad, pre, up, act, mask, mask_before, cu_seqlens)
        if pre.numel() == 0:
            return tuple(o.zero_() for o in outputs)
        mask, cu_seqlens = mask if mask is None else mask.float().contiguous(), rows_contiguous(cu_seqlens)
        grad, pre, up = (rows_contiguous(t) for t in (grad, pre, up))
        run(grad, pre, up, ACTS.index(act), mask, mask_before, cu_seqlens, *outputs)
        return outputs

    return call


def _run_cpp(*args) -> None:
    _native.op("cpp", "act_bwd_maskgrad")(*args)


def _run_triton(*args) -> None:
    from pyprune.triton_kernels.act_bwd_maskgrad import act_bwd_maskgrad as launch

    launch(*args)


def _supports(grad, *_) -> Support:
    return (True, "") if grad.dtype in KERNEL_DTYPES else (False, f"no kernel for {grad.dtype}")


def _supports_triton(grad, pre, up, act, mask, mask_before, cu_seqlens) -> Support:
    from pyprune.triton_kernels.activations import supports

    return supports(pre, cu_seqlens)


def fake(grad, pre, up=None, act="gelu", mask=None, mask_before=False, cu_seqlens=None):
    check_activation("act_bwd_maskgrad", {"pre": pre, "grad": grad, "up": up}, act, mask, cu_seqlens)
    sums = (sample_count(pre, cu_seqlens), pre.shape[-1])
    after, before = (pre.new_empty(sums, dtype=wide_dtype(pre.dtype)) for _ in range(2))
    return pre.new_empty(pre.shape), pre.new_empty(0 if up is None else pre.shape), after, before


def samples() -> Iterator[tuple]:
    generator = torch.Generator().manual_seed(0)
    make = lambda *shape, dtype=torch.float32: torch.randn(*shape, generator=generator).to(dtype)  # noqa: E731
    some = lambda n, *shape, dtype=torch.float32: tuple(make(*shape, dtype=dtype) for _ in range(n))  # noqa: E731
    for act in ACTS:
        for dtype in KERNEL_DTYPES:
            yield *some(2, 1, 37, 20, dtype=dtype), None, act
    yield *some(3, 2, 5, 12), "silu", make(2, 12)
    yield *some(2, 3, 4, 6), None, "gelu", make(6, dtype=torch.bfloat16), True
    yield *some(3, 7, 6), "gelu_tanh", make(3, 6), True, torch.tensor([1, 3, 3, 6])
    yield *some(3, 2, 0, 3), "gelu"


def bytes_moved(grad, pre, up=None, act="gelu", mask=None, mask_before=False, cu_seqlens=None) -> int:
    tensors = 3 if up is None else 5
    return tensors * pre.numel() * pre.element_size() + 2 * 4 * sample_count(pre, cu_seqlens) * pre.shape[-1]


def flops(grad, pre, up=None, *_) -> int:
    """An activation with its derivative counted as one."""
    return (6 if up is None else 8) * pre.numel()


OP = Op(
    name="act_bwd_maskgrad",
    schema=SCHEMA,
    candidates=(
        Candidate("triton", ("cuda",), _prepared(_run_triton), triton_missing, _supports_triton),
        Candidate("cpp", ("cpu",), _prepared(_run_cpp), lambda: _native.missing("cpp"), _supports),
        Candidate("torch", ("cpu", "cuda"), reference),
    ),
    check=check,
    samples=samples,
    bytes_moved=bytes_moved,
    flops=flops,
)
library.register_fake("pyprune::act_bwd_maskgrad", fake)
