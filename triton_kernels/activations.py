"""Activations and their derivatives in fp32 for kernels, by the formulas of csrc/cpu/vmath.h.

Kernels take the position of an activation in `pyprune.ops.act_fwd_stats.ACTS`: 0 silu, 1 gelu, 2 gelu_tanh, 3 relu.
"""

import torch
import triton
import triton.language as tl
from pyprune.triton_kernels.segments import SEGMENT
from torch import Tensor

# A program covers COLUMNS columns: a warp reads 512 bytes of a row in bf16, 16 bytes a thread.
COLUMNS = 256


@triton.jit
def times_sigmoid(x, y, steep):
    """x * sigmoid(y) and its derivative; `steep` = dy/dx. sigmoid(y) and sigmoid(-y) without a difference."""
    e = tl.exp(-tl.abs(y))
    large = 1.0 / (1.0 + e)
    small = e * large
    s = tl.where(y >= 0, large, small)
    low = tl.where(x < -750.0, -750.0, x)
    return low * s, s + tl.where(low > 750.0, 750.0, low) * steep * (large * small)


@triton.jit
def activate(x, ACT: tl.constexpr):
    """(act(x), act'(x)); at infinities the limits."""
    if ACT == 0:
        return times_sigmoid(x, x, 1.0)
    elif ACT == 1:
        # The lower tail of the normal distribution is exp(-x^2 / 2) Mills(|x|), and Mills a polynomial in
        # 1 / (1 + 0.27 |x|), relative error 2.3e-8. The exponential serves the derivative too, which erf would not.
        low = tl.where(x < -750.0, -750.0, x)
        near = tl.where(low > 750.0, 750.0, low)
        size = tl.abs(near)
        t = 1.0 / (1.0 + 0.27 * size)
        e = tl.exp(-0.5 * size * size)
        mills = -0.12595403 + t * 0.02885555
        mills = 0.10683729 + t * (-0.06784597 + t * (0.16864334 + t * mills))
        mills = 0.10771954 + t * (0.10756073 + t * (0.10169066 + t * (0.0724929 + t * mills)))
        tail = e * (t * mills)
        below = tl.where(x >= 0, 1.0 - tail, tail)
        return low * below, below + near * (0.3989423 * e)
    elif ACT == 2:
        # 1 + tanh(v) = 2 sigmoid(2 v); the constant is 2 sqrt(2 / pi).
        low = tl.where(x < -750.0, -750.0, x)
        near = tl.where(low > 750.0, 750.0, low)
        square = near * near
        return times_sigmoid(x, 1.5957691 * near * (1.0 + 0.044715 * square), 1.5957691 * (1.0 + 0.134145 * square))
    else:
        return tl.where(x < 0, 0.0, x), tl.where(x <= 0, 0.0, 1.0)


@triton.jit
def mask_columns(mask, mask_sample, b, column, inside, MASKED: tl.constexpr, COLUMNS: tl.constexpr):
    """The mask of sample b at some columns, 1 without a mask."""
    if MASKED:
        return tl.load(mask + b * mask_sample + column, mask=inside, other=0.0)
    else:
        return tl.full((COLUMNS,), 1.0, tl.float32)


@triton.jit
def zero_outside(out, slot, cu_seqlens, samples, tokens, columns, column, inside, SEGMENT: tl.constexpr):
    """Zeros in the rows of a ragged output that belong to no sample; slot s looks after SEGMENT rows of all."""
    begin = slot * SEGMENT
    stop = tl.minimum(begin + SEGMENT, tokens)
    nothing = tl.zeros((column.shape[0],), out.dtype.element_ty)
    for row in range(begin, tl.minimum(stop, tl.load(cu_seqlens).to(tl.int64))):
        tl.store(out + row * columns + column, nothing, mask=inside)
    for row in range(tl.maximum(begin, tl.load(cu_seqlens + samples).to(tl.int64)), stop):
        tl.store(out + row * columns + column, nothing, mask=inside)


def supports(pre: Tensor, cu_seqlens: Tensor | None) -> tuple[bool, str]:
    if pre.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return False, f"no kernel for {pre.dtype}"
    if cu_seqlens is None:
        slots = pre.shape[0] * max(triton.cdiv(pre.shape[1], SEGMENT), 1)
    else:
        slots = pre.shape[0] // SEGMENT + cu_seqlens.shape[0]
    if slots >= 2**31 or pre.shape[-1] > 65535 * COLUMNS:
        return False, f"a grid for {list(pre.shape)} is too large"
    return True, ""


def strides(t: Tensor | None, ragged: bool) -> tuple[int, int]:
    """(from sample to sample, from token to token)"""
    if t is None:
        return 0, 0
    return (0, t.stride(0)) if ragged else (t.stride(0), t.stride(1))
