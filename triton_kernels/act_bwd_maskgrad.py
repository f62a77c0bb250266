"""act_bwd_maskgrad in Triton: the backward of an activation and both mask gradients in one pass, no atomics.

One program owns (column block, segment of a sample); see segments.py.
"""

import triton
import triton.language as tl
from pyprune.triton_kernels import COUNTS
from pyprune.triton_kernels.activations import COLUMNS, activate, mask_columns, strides, zero_outside
from pyprune.triton_kernels.segments import SEGMENT, add_segments_kernel, locate, offsets_or, slot_count
from torch import Tensor

# One row to a warp: a second one takes up to 138 registers with up and a mask, where this takes 103.
ROWS, WARPS = 8, 8
DOT = False


@triton.jit(do_not_specialize=COUNTS)
def act_bwd_maskgrad_kernel(
    grad, pre, up, mask, dpre, dup, after, before, after_part, before_part, cu_seqlens, samples, tokens, columns,
    grad_sample, grad_token, pre_sample, pre_token, up_sample, up_token, mask_sample,
    ACT: tl.constexpr, GATED: tl.constexpr, MASKED: tl.constexpr, MASK_BEFORE: tl.constexpr,
    RAGGED: tl.constexpr, SEGMENT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Grid (slots, column blocks). Sums of a sample of one segment go to `after[b]` and `before[b]`, others to row
    `slot` of the parts.
    """
    slot = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < columns
    if RAGGED:
        zero_outside(dpre, slot, cu_seqlens, samples, tokens, columns, column, inside, SEGMENT)
        if GATED:
            zero_outside(dup, slot, cu_seqlens, samples, tokens, columns, column, inside, SEGMENT)
    b, first, length, begin = locate(slot, cu_seqlens, samples, tokens, RAGGED, SEGMENT)
    if begin < length or begin == 0:
        grad_row = grad + b * grad_sample + (first + begin) * grad_token
        pre_row = pre + b * pre_sample + (first + begin) * pre_token
        up_row = up + b * up_sample + (first + begin) * up_token
        out = (first + begin) * columns
        if not RAGGED:
            out += b * tokens * columns
        here = tl.minimum(length - begin, SEGMENT).to(tl.int32)
        row = tl.arange(0, ROWS)
        m = mask_columns(mask, mask_sample, b, column, inside, MASKED, COLUMNS)
        acc_after = tl.zeros((ROWS, COLUMNS), tl.float32)
        acc_before = tl.zeros((ROWS, COLUMNS), tl.float32)
        for t in range(0, here, ROWS):
            at = (t + row).to(tl.int64)[:, None]
            valid = ((t + row) < here)[:, None] & inside[None, :]
            g = tl.load(grad_row + at * grad_token + column[None, :], mask=valid, other=0.0).to(tl.float32)
            p = tl.load(pre_row + at * pre_token + column[None, :], mask=valid, other=0.0).to(tl.float32)
            gu = g
            if GATED:
                gu = g * tl.load(up_row + at * up_token + column[None, :], mask=valid, other=0.0).to(tl.float32)
            z = p
            if MASKED and MASK_BEFORE:
                z = p * m[None, :]
            value, slope = activate(z, ACT)
            acc_after += gu * value
            dz = gu * slope
            da = g * value
            if MASKED and not MASK_BEFORE:
                dz *= m[None, :]
                da *= m[None, :]
            acc_before += p * dz
            if MASKED and MASK_BEFORE:
                dz *= m[None, :]
            to = out + at * columns + column[None, :]
            tl.store(dpre + to, dz.to(dpre.dtype.element_ty), mask=valid)
            if GATED:
                tl.store(dup + to, da.to(dup.dtype.element_ty), mask=valid)
        sum_after, sum_before = tl.sum(acc_after, 0), tl.sum(acc_before, 0)
        if length <= SEGMENT:
            tl.store(after + b * columns + column, sum_after, mask=inside)
            tl.store(before + b * columns + column, sum_before, mask=inside)
        else:
            tl.store(after_part + slot * columns + column, sum_after, mask=inside)
            tl.store(before_part + slot * columns + column, sum_before, mask=inside)


def act_bwd_maskgrad(
    grad: Tensor, pre: Tensor, up: Tensor | None, act: int, mask: Tensor | None, mask_before: bool,
    cu_seqlens: Tensor | None, dpre: Tensor, dup: Tensor, after: Tensor, before: Tensor,
) -> None:  # fmt: skip
    """Launch: inputs with contiguous rows and something in them, contiguous outputs, a float32 mask or None; checked by
    `pyprune.ops.act_bwd_maskgrad`.
    """
    columns, ragged, gated = pre.shape[-1], cu_seqlens is not None, up is not None
    samples, tokens = after.shape[0], pre.shape[0 if ragged else 1]
    if samples == 0:
        dpre.zero_()
        dup.zero_()
        return
    slots, long = slot_count(samples, tokens, ragged), tokens > SEGMENT
    parts = [after.new_empty((slots, columns)) for _ in range(2)] if long else [after, before]
    offsets, blocks = offsets_or(cu_seqlens, after), triton.cdiv(columns, COLUMNS)
    act_bwd_maskgrad_kernel[(slots, blocks)](
        grad, pre, up if gated else pre, mask if mask is not None else after, dpre, dup, after, before, *parts, offsets,
        samples, tokens, columns, *strides(grad, ragged), *strides(pre, ragged), *strides(up, ragged),
        columns if mask is not None and mask.dim() == 2 else 0,
        ACT=act, GATED=gated, MASKED=mask is not None, MASK_BEFORE=mask_before and mask is not None,
        RAGGED=ragged, SEGMENT=SEGMENT, ROWS=ROWS, COLUMNS=COLUMNS, num_warps=WARPS,
    )  # fmt: skip
    if long:
        for part, out in zip(parts, (after, before), strict=True):
            add_segments_kernel[(samples, blocks)](
                part, out, offsets, tokens, columns, RAGGED=ragged, SEGMENT=SEGMENT, COLUMNS=COLUMNS, num_warps=WARPS
            )


def _spec(registers: int, act: int, dtype: str, gated: bool, ragged: bool = False, mask: str = "") -> dict:
    pointers = ("grad", "pre", "up", "dpre", "dup")
    sums = ("mask", "after", "before", "after_part", "before_part")
    steps = ("grad_sample", "grad_token", "pre_sample", "pre_token", "up_sample", "up_token", "mask_sample")
    name = f"{('silu', 'gelu', 'gelu_tanh', 'relu')[act]}{'-gated' if gated else ''}-{dtype}"
    return {
        "name": f"act_bwd_maskgrad-{name}{'-ragged' if ragged else ''}{f'-mask-{mask}' if mask else ''}",
        "kernel": act_bwd_maskgrad_kernel,
        "signature": dict.fromkeys(pointers, f"*{dtype}")
        | dict.fromkeys(sums, "*fp32")
        | {"cu_seqlens": "*i32" if ragged else "*fp32", "samples": "i32", "tokens": "i32", "columns": "i32"}
        | dict.fromkeys(steps, "i64"),
        "constexprs": {"ACT": act, "GATED": gated, "MASKED": mask != "", "MASK_BEFORE": mask == "before"}
        | {"RAGGED": ragged, "SEGMENT": SEGMENT, "ROWS": ROWS, "COLUMNS": COLUMNS},
        "divisible": (*pointers, *sums, "columns", *steps),
        "options": {"num_warps": WARPS},
        "max_registers": registers,
        "max_shared": ROWS * COLUMNS * 2,  # the sums of half the warps
        "instructions": ("LDG.E.128", "STG.E.128"),
    }


AOT = [
    _spec(80, 0, "bf16", True),
    _spec(92, 0, "bf16", True, ragged=True, mask="after"),
    _spec(74, 0, "fp32", True),
    _spec(58, 0, "bf16", False),
    _spec(76, 1, "bf16", False),
    _spec(100, 1, "bf16", True, ragged=True, mask="before"),
    _spec(102, 1, "fp16", False, mask="after"),
    _spec(66, 1, "fp32", False),
    _spec(66, 2, "bf16", False),
    _spec(80, 2, "bf16", True),
    _spec(48, 3, "bf16", False),
    _spec(63, 3, "bf16", True),
]
