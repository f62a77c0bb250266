"""act_fwd_stats in Triton: an activation with a mask, and the moments of its result over tokens, in one pass.

One program owns (column block, segment of a sample); see segments.py.
"""

import triton
import triton.language as tl
from pyprune.triton_kernels import COUNTS
from pyprune.triton_kernels.activations import COLUMNS, activate, mask_columns, strides, zero_outside
from pyprune.triton_kernels.segments import SEGMENT, locate, offsets_or, slot_count
from torch import Tensor

# One row to a warp, because the moments take three accumulators for each element of a tile.
ROWS, WARPS = 4, 4
DOT = False
ADDS_ROUNDED = True  # Triton's interpreter rounds to bfloat16 towards zero, which would show in the moments


@triton.jit(do_not_specialize=COUNTS)
def act_fwd_stats_kernel(
    pre, up, mask, out, mean, m2, l1, mean_part, m2_part, l1_part, cu_seqlens, samples, tokens, columns,
    pre_sample, pre_token, up_sample, up_token, mask_sample,
    ACT: tl.constexpr, GATED: tl.constexpr, MASKED: tl.constexpr, MASK_BEFORE: tl.constexpr, STATS: tl.constexpr,
    RAGGED: tl.constexpr, SEGMENT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Grid (slots, column blocks). Moments of a sample of one segment go to its row of mean, m2 and l1, others to row
    `slot` of the parts.
    """
    slot = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < columns
    if RAGGED:
        zero_outside(out, slot, cu_seqlens, samples, tokens, columns, column, inside, SEGMENT)
    b, first, length, begin = locate(slot, cu_seqlens, samples, tokens, RAGGED, SEGMENT)
    if begin < length or begin == 0:
        pre_row = pre + b * pre_sample + (first + begin) * pre_token
        up_row = up + b * up_sample + (first + begin) * up_token
        out_row = out + (first + begin) * columns
        if not RAGGED:
            out_row += b * tokens * columns
        here = tl.minimum(length - begin, SEGMENT).to(tl.int32)
        row = tl.arange(0, ROWS)
        m = mask_columns(mask, mask_sample, b, column, inside, MASKED, COLUMNS)
        # Welford's running moments, every row of the tile by itself.
        means = tl.zeros((ROWS, COLUMNS), tl.float32)
        squares = tl.zeros((ROWS, COLUMNS), tl.float32)
        sizes = tl.zeros((ROWS, COLUMNS), tl.float32)
        for t in range(0, here, ROWS):
            at = (t + row).to(tl.int64)[:, None]
            valid = ((t + row) < here)[:, None] & inside[None, :]
            z = tl.load(pre_row + at * pre_token + column[None, :], mask=valid, other=0.0).to(tl.float32)
            if MASKED and MASK_BEFORE:
                z *= m[None, :]
            a, _ = activate(z, ACT)
            if GATED:
                a *= tl.load(up_row + at * up_token + column[None, :], mask=valid, other=0.0).to(tl.float32)
            if MASKED and not MASK_BEFORE:
                a *= m[None, :]
            stored = a.to(out.dtype.element_ty)
            tl.store(out_row + at * columns + column[None, :], stored, mask=valid)
            if STATS:
                v = stored.to(tl.float32)
                step = tl.where(valid, v - means, 0.0)
                means += step * (1.0 / (t // ROWS + 1))
                squares += step * tl.where(valid, v - means, 0.0)
                sizes += tl.abs(tl.where(valid, v, 0.0))
        if STATS:
            count = ((here - row + ROWS - 1) // ROWS).to(tl.float32)[:, None]
            total = tl.sum(means * count, 0) / tl.maximum(here, 1).to(tl.float32)
            step = means - total[None, :]
            spread = tl.sum(squares + step * step * count, 0)
            absolute = tl.sum(sizes, 0)
            if length <= SEGMENT:
                tl.store(mean + b * columns + column, total, mask=inside)
                tl.store(m2 + b * columns + column, spread, mask=inside)
                tl.store(l1 + b * columns + column, absolute, mask=inside)
            else:
                tl.store(mean_part + slot * columns + column, total, mask=inside)
                tl.store(m2_part + slot * columns + column, spread, mask=inside)
                tl.store(l1_part + slot * columns + column, absolute, mask=inside)


@triton.jit(do_not_specialize=COUNTS)
def merge_moments_kernel(
    mean_part, m2_part, l1_part, mean, m2, l1, cu_seqlens, tokens, columns,
    RAGGED: tl.constexpr, SEGMENT: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Grid (samples, column blocks). Joins the moments of samples of more than one segment, in order (Chan et al.)."""
    b = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < columns
    if RAGGED:
        first = tl.load(cu_seqlens + b).to(tl.int64)
        length = tl.load(cu_seqlens + b + 1).to(tl.int64) - first
        slot = first // SEGMENT + b
    else:
        length = tokens
        slot = b * ((tokens + SEGMENT - 1) // SEGMENT)
    if length > SEGMENT:
        total = tl.zeros((COLUMNS,), tl.float32)
        spread = tl.zeros((COLUMNS,), tl.float32)
        absolute = tl.zeros((COLUMNS,), tl.float32)
        for s in range(0, (length + SEGMENT - 1) // SEGMENT):
            at = (slot + s) * columns + column
            before = s * SEGMENT * 1.0
            here = tl.minimum(length - s * SEGMENT, SEGMENT).to(tl.float32)
            weight = here / (before + here)
            step = tl.load(mean_part + at, mask=inside, other=0.0) - total
            total += step * weight
            spread += tl.load(m2_part + at, mask=inside, other=0.0) + step * step * (before * weight)
            absolute += tl.load(l1_part + at, mask=inside, other=0.0)
        tl.store(mean + b * columns + column, total, mask=inside)
        tl.store(m2 + b * columns + column, spread, mask=inside)
        tl.store(l1 + b * columns + column, absolute, mask=inside)


def act_fwd_stats(
    pre: Tensor, up: Tensor | None, act: int, mask: Tensor | None, mask_before: bool, cu_seqlens: Tensor | None,
    stats: bool, out: Tensor, mean: Tensor, m2: Tensor, l1: Tensor,
) -> None:  # fmt: skip
    """Launch: inputs with contiguous rows and something in them, contiguous outputs, a float32 mask or None; checked by
    `pyprune.ops.act_fwd_stats`.
    """
    columns, ragged, gated = pre.shape[-1], cu_seqlens is not None, up is not None
    samples, tokens = pre.shape[:2] if cu_seqlens is None else (cu_seqlens.shape[0] - 1, pre.shape[0])
    if samples == 0:
        out.zero_()
        return
    slots, long = slot_count(samples, tokens, ragged), stats and tokens > SEGMENT
    parts = [mean.new_empty((slots, columns)) for _ in range(3)] if long else [mean, m2, l1]
    offsets, blocks = offsets_or(cu_seqlens, pre), triton.cdiv(columns, COLUMNS)
    act_fwd_stats_kernel[(slots, blocks)](
        pre, up if gated else pre, mask if mask is not None else mean, out, mean, m2, l1, *parts, offsets,
        samples, tokens, columns, *strides(pre, ragged), *strides(up, ragged),
        columns if mask is not None and mask.dim() == 2 else 0,
        ACT=act, GATED=gated, MASKED=mask is not None, MASK_BEFORE=mask_before and mask is not None, STATS=stats,
        RAGGED=ragged, SEGMENT=SEGMENT, ROWS=ROWS, COLUMNS=COLUMNS, num_warps=WARPS,
    )  # fmt: skip
    if long:
        merge_moments_kernel[(samples, blocks)](
            *parts, mean, m2, l1, offsets, tokens, columns,
            RAGGED=ragged, SEGMENT=SEGMENT, COLUMNS=COLUMNS, num_warps=WARPS,
        )  # fmt: skip


_SUMS = ("mean", "m2", "l1", "mean_part", "m2_part", "l1_part")


def _spec(registers: int, act: int, dtype: str, gated: bool, stats: bool, ragged: bool = False, mask: str = "") -> dict:
    steps = ("pre_sample", "pre_token", "up_sample", "up_token", "mask_sample")
    name = f"{('silu', 'gelu', 'gelu_tanh', 'relu')[act]}{'-gated' if gated else ''}-{dtype}"
    name += f"{'-stats' if stats else ''}{'-ragged' if ragged else ''}{f'-mask-{mask}' if mask else ''}"
    return {
        "name": f"act_fwd_stats-{name}",
        "kernel": act_fwd_stats_kernel,
        "signature": dict.fromkeys(("pre", "up", "out"), f"*{dtype}")
        | dict.fromkeys(("mask", *_SUMS), "*fp32")
        | {"cu_seqlens": "*i32" if ragged else f"*{dtype}", "samples": "i32", "tokens": "i32", "columns": "i32"}
        | dict.fromkeys(steps, "i64"),
        "constexprs": {"ACT": act, "GATED": gated, "MASKED": mask != "", "MASK_BEFORE": mask == "before"}
        | {"STATS": stats, "RAGGED": ragged, "SEGMENT": SEGMENT, "ROWS": ROWS, "COLUMNS": COLUMNS},
        "divisible": ("pre", "up", "out", "mask", *_SUMS, "columns", *steps),
        "options": {"num_warps": WARPS},
        "max_registers": registers,
        # The sums of half the warps; a mask changes its layout through it.
        "max_shared": ROWS * COLUMNS * 2 if stats else COLUMNS * 4 if mask else 0,
        "instructions": ("LDG.E.128", "STG.E.128"),
    }


def _merge_spec(ragged: bool) -> dict:
    return {
        "name": f"act_fwd_stats-merge-{'ragged' if ragged else 'dense'}",
        "kernel": merge_moments_kernel,
        "signature": dict.fromkeys(_SUMS, "*fp32")
        | {"cu_seqlens": "*i32" if ragged else "*fp32", "tokens": "i32", "columns": "i32"},
        "constexprs": {"RAGGED": ragged, "SEGMENT": SEGMENT, "COLUMNS": COLUMNS},
        "divisible": (*_SUMS, "columns"),
        "options": {"num_warps": WARPS},
        "max_registers": 32,
    }


AOT = [
    _spec(32, 0, "bf16", True, False),
    _spec(72, 0, "bf16", True, True, ragged=True, mask="after"),
    _spec(47, 1, "bf16", False, False, mask="before"),
    _spec(76, 1, "bf16", False, True),
    _spec(72, 1, "fp32", True, True),
    _spec(56, 2, "fp16", False, True),
    _spec(42, 2, "bf16", True, False),
    _spec(60, 3, "bf16", False, True),
    _merge_spec(True),
    _merge_spec(False),
]
