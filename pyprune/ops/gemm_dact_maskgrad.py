"""gemm_dact_maskgrad: the backward through the down projection and the activation, with both mask gradients.

`act_bwd_maskgrad` on `dy @ w2`. Fused, dL/d(activation) stays in registers and never goes to memory.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, library

from pyprune.core.errors import InputError
from pyprune.ops._dispatch import Candidate, Op, Support, detached, triton_missing
from pyprune.ops._offsets import check_offset_values
from pyprune.ops.act_bwd_maskgrad import act_bwd_maskgrad
from pyprune.ops.act_bwd_maskgrad import fake as fake_unfused
from pyprune.ops.act_bwd_maskgrad import flops as flops_unfused
from pyprune.ops.act_fwd_stats import (
    ACTS,
    KERNEL_DTYPES,
    check_activation,
    rows_contiguous,
    sample_count,
)

SCHEMA = (
    '(Tensor dy, Tensor w2, Tensor pre, Tensor? up=None, str act="gelu", Tensor? cu_seqlens=None) -> '
    "(Tensor, Tensor, Tensor, Tensor)"
)


def gemm_dact_maskgrad(
    dy: Tensor,
    w2: Tensor,
    pre: Tensor,
    up: Tensor | None = None,
    act: str = "gelu",
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of `a = act(pre) * up` and of masks before and after the activation, from dy = dL/d(a @ w2.T).

    With dA = dy @ w2:

        dpre         = dA * up * act'(pre)     dup = dA * act(pre)
        after[b, f]  = sum_t a * dA            dL/d(mask on the output), at 1
        before[b, f] = sum_t pre * dpre        dL/d(mask on the input), at 1

    dy: `[B, T, d]`, or `[N_tok, d]` with cu_seqlens. Any strides; a last dimension that is not contiguous is copied.
    w2: `[d, F]`, the down projection's weight as nn.Linear holds it.
    pre, up, act, cu_seqlens: as for `act_bwd_maskgrad`, pre and up `[B, T, F]` or `[N_tok, F]`. All floating tensors
        have one dtype (float32, bfloat16, float16; float64 through torch) and device.

    Returns (dpre, dup, after, before) as `act_bwd_maskgrad` does. The Triton kernel is deterministic, a sample's bits
    do not depend on the rest of the batch, and dA is not rounded; it serves only where it is chosen by name. Otherwise
    dA is rounded to the dtype, and its bits are those of torch's matrix product. Not differentiable.

    Raises: InputError for shapes, dtypes, an activation or offsets that do not fit; BackendError, see
    `pyprune.ops.backend`.

    >>> dy, w2 = torch.tensor([[[1.0], [2.0]]]), torch.tensor([[10.0, -5.0]])
    >>> pre = torch.tensor([[[-1.0, 2.0], [3.0, 4.0]]])
    >>> dpre, _, after, before = gemm_dact_maskgrad(dy, w2, pre, act="relu")
    >>> dpre.tolist(), after.tolist(), before.tolist()
    ([[[0.0, -5.0], [20.0, -10.0]]], [[60.0, -50.0]], [[60.0, -50.0]])
    """
    return torch.ops.pyprune.gemm_dact_maskgrad.default(*detached(dy, w2, pre, up, act, cu_seqlens))


def check_shapes(dy, w2, pre, up, act, cu_seqlens) -> None:
    """Everything but the values of offsets."""
    check_activation("gemm_dact_maskgrad", {"pre": pre, "up": up}, act, None, cu_seqlens)
    if w2.dim() != 2 or w2.shape[1] != pre.shape[-1]:
        raise InputError(
            f"gemm_dact_maskgrad: w2 must be [d, F] = [d, {pre.shape[-1]}], the down projection's weight as nn.Linear "
            f"holds it, got {list(w2.shape)}"
        )
    expected = [*pre.shape[:-1], w2.shape[0]]
    if list(dy.shape) != expected:
        raise InputError(f"gemm_dact_maskgrad: dy must be {expected} for w2 and pre, got {list(dy.shape)}")
    for name, t in (("dy", dy), ("w2", w2)):
        if t.dtype != pre.dtype or t.device != pre.device:
            raise InputError(
                f"gemm_dact_maskgrad: {name} must be like pre, {pre.dtype} on {pre.device}, got {t.dtype} on {t.device}"
            )


def check(dy, w2, pre, up, act, cu_seqlens) -> None:
    check_shapes(dy, w2, pre, up, act, cu_seqlens)
    check_offset_values("gemm_dact_maskgrad", cu_seqlens, pre.shape[0])


def reference(dy, w2, pre, up, act, cu_seqlens):
    """The definition, and the way to beat: torch's matrix product, then the op; exact to float64 for float64 inputs."""
    grad = torch.mm(dy.flatten(0, -2), w2).view(pre.shape)
    return act_bwd_maskgrad(grad, pre, up, act, None, False, cu_seqlens)


def _run_triton(dy, w2, pre, up, act, cu_seqlens):
    outputs = fake(dy, w2, pre, up, act, cu_seqlens)
    if pre.numel() == 0:
        return tuple(o.zero_() for o in outputs)
    from pyprune.triton_kernels.gemm_dact_maskgrad import gemm_dact_maskgrad as launch

    dy, w2, pre, up, cu_seqlens = (rows_contiguous(t) for t in (dy, w2, pre, up, cu_seqlens))
    launch(dy, w2, pre, up, ACTS.index(act), cu_seqlens, *outputs)
    return outputs


def _supports_triton(dy, w2, pre, up, act, cu_seqlens) -> Support:
    from pyprune.triton_kernels.gemm_dact_maskgrad import supports

    return supports(pre, cu_seqlens)


def fake(dy, w2, pre, up=None, act="gelu", cu_seqlens=None):
    check_shapes(dy, w2, pre, up, act, cu_seqlens)
    return fake_unfused(pre, pre, up, act, None, False, cu_seqlens)


def samples() -> Iterator[tuple]:
    generator = torch.Generator().manual_seed(0)
    make = lambda *shape, dtype=torch.float32: torch.randn(*shape, generator=generator).to(dtype)  # noqa: E731
    for act, dtype in zip(ACTS, (*KERNEL_DTYPES, torch.float32), strict=True):
        yield make(1, 37, 9, dtype=dtype), make(9, 20, dtype=dtype), make(1, 37, 20, dtype=dtype), None, act
    yield make(2, 5, 3), make(3, 12), make(2, 5, 12), make(2, 5, 12), "silu"
    yield make(7, 4), make(4, 6), make(7, 6), make(7, 6), "gelu_tanh", torch.tensor([1, 3, 3, 6])
    yield make(2, 0, 3), make(3, 5), make(2, 0, 5)


def bytes_moved(dy, w2, pre, up=None, act="gelu", cu_seqlens=None) -> int:
    """dA is not among them."""
    wide = (2 if up is None else 4) * pre.numel() + dy.numel() + w2.numel()
    return wide * pre.element_size() + 2 * 4 * sample_count(pre, cu_seqlens) * pre.shape[-1]


def flops(dy, w2, pre, up=None, *_) -> int:
    """The matrix product, and what `act_bwd_maskgrad` counts."""
    return 2 * dy.numel() * w2.shape[1] + flops_unfused(pre, pre, up)


OP = Op(
    name="gemm_dact_maskgrad",
    schema=SCHEMA,
    candidates=(
        Candidate("triton", ("cuda",), _run_triton, triton_missing, _supports_triton, on_request=True),
        Candidate("torch", ("cpu", "cuda"), reference),
    ),
    check=check,
    samples=samples,
    bytes_moved=bytes_moved,
    flops=flops,
)
library.register_fake("pyprune::gemm_dact_maskgrad", fake)
