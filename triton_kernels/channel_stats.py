"""channel_stats in Triton: per sample and channel the mean, M2 and sum of |x|, one read, no atomics.

One program owns (column block, segment of a sample); see segments.py. It sums x - shift, with the mean of the segment's
first rows for shift, or 0 where that is small for their range, as csrc/cpu/channel_stats.cpp explains. A second kernel
merges the segments in float64 by Chan's formula, in order.
"""

import torch
import triton
import triton.language as tl
from pyprune.triton_kernels import COUNTS
from pyprune.triton_kernels.segments import SEGMENT, locate, offsets_or, slot_count
from torch import Tensor

# 16 rows x 256 columns: 16 values a thread and three accumulators of them. With 8 rows a segment makes running sums of
# 64 terms and not 32, which err more than the budget allows; and the signs of 8 numbers say less about their mean.
ROWS, COLUMNS, WARPS = 16, 256, 8
MERGE_WARPS = 4  # two doubles a thread
# Statistics of a segment, in float64: mean, M2, sum of |x|.
PLANES = 3

DOT = False  # whether tl.dot is used, which Triton's interpreter gets wrong in bfloat16


@triton.jit(do_not_specialize=COUNTS)
def channel_stats_kernel(
    x, mean, m2, l1, partial, counts, cu_seqlens, mask, samples, slots, tokens, columns, x_sample, x_token,
    RAGGED: tl.constexpr, MASKED: tl.constexpr, SEGMENT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Grid (slots, column blocks). Writes the results of a sample of one segment, else `partial[plane, slot]` and
    `counts[slot]`.
    """
    slot = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < columns
    b, first, length, begin = locate(slot, cu_seqlens, samples, tokens, RAGGED, SEGMENT)
    if begin < length or begin == 0:
        here = tl.minimum(length - begin, SEGMENT).to(tl.int32)
        count = here
        start = here * 0
        real = mask + b * tokens + begin
        if MASKED:
            token = tl.arange(0, SEGMENT)
            is_real = tl.load(real + token, mask=token < here, other=0) != 0
            count = tl.sum(is_real.to(tl.int32), 0)
            start = tl.min(tl.where(is_real, token, SEGMENT), 0)  # the shift wants tokens that are there
        row = tl.arange(0, ROWS)
        x_row = x + b * x_sample + (first + begin) * x_token
        shift = tl.zeros((COLUMNS,), tl.float32)
        linear = tl.zeros((ROWS, COLUMNS), tl.float32)
        square = tl.zeros((ROWS, COLUMNS), tl.float32)
        absolute = tl.zeros((ROWS, COLUMNS), tl.float32)
        for t in range(start, here, ROWS):
            at = t + row
            there = at < here
            if MASKED:
                there = there & (tl.load(real + at, mask=there, other=0) != 0)
            mask_here = there[:, None] & inside[None, :]
            value = tl.load(x_row + at.to(tl.int64)[:, None] * x_token + column[None, :], mask=mask_here, other=0.0)
            value = value.to(tl.float32)
            if t == start:
                average = tl.sum(value, 0) / tl.maximum(tl.sum(there.to(tl.int32), 0), 1)
                span = tl.max(tl.where(there[:, None], value, float("-inf")), 0) - tl.min(
                    tl.where(there[:, None], value, float("inf")), 0
                )
                shift = tl.where(2.0 * tl.abs(average) < span, 0.0, average)
            d = tl.where(there[:, None], value - shift[None, :], 0.0)
            linear += d
            square += d * d
            absolute += tl.abs(value)
        terms = tl.maximum(count, 1).to(tl.float64)
        sum_of_d = tl.sum(linear, 0).to(tl.float64)
        offset = sum_of_d / terms
        average = shift.to(tl.float64) + offset
        deviation = tl.maximum(tl.sum(square, 0).to(tl.float64) - sum_of_d * offset, 0.0)
        total = tl.sum(absolute, 0)
        if length <= SEGMENT:
            tl.store(mean + b * columns + column, average.to(tl.float32), mask=inside)
            tl.store(m2 + b * columns + column, deviation.to(tl.float32), mask=inside)
            tl.store(l1 + b * columns + column, total, mask=inside)
        else:
            plane = tl.cast(slots, tl.int64) * columns
            tl.store(partial + slot * columns + column, average, mask=inside)
            tl.store(partial + plane + slot * columns + column, deviation, mask=inside)
            tl.store(partial + 2 * plane + slot * columns + column, total.to(tl.float64), mask=inside)
            tl.store(counts + slot, count)  # every column block writes the same


@triton.jit(do_not_specialize=COUNTS)
def merge_segments_kernel(
    partial, counts, mean, m2, l1, cu_seqlens, slots, tokens, columns,
    RAGGED: tl.constexpr, SEGMENT: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Grid (samples, column blocks). Merges the segments of samples with more than one."""
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
        plane = tl.cast(slots, tl.int64) * columns
        average = tl.zeros((COLUMNS,), tl.float64)
        deviation = tl.zeros((COLUMNS,), tl.float64)
        total = tl.zeros((COLUMNS,), tl.float64)
        before = tl.zeros((), tl.float64)
        for s in range(0, (length + SEGMENT - 1) // SEGMENT):
            at = partial + (slot + s) * columns + column
            count = tl.load(counts + slot + s).to(tl.float64)
            weight = count / tl.maximum(before + count, 1.0)
            delta = tl.load(at, mask=inside, other=0.0) - average
            average += delta * weight
            deviation += tl.load(at + plane, mask=inside, other=0.0) + delta * delta * (before * weight)
            total += tl.load(at + 2 * plane, mask=inside, other=0.0)
            before += count
        tl.store(mean + b * columns + column, average.to(tl.float32), mask=inside)
        tl.store(m2 + b * columns + column, deviation.to(tl.float32), mask=inside)
        tl.store(l1 + b * columns + column, total.to(tl.float32), mask=inside)


def supports(x: Tensor, cu_seqlens: Tensor | None, token_mask: Tensor | None) -> tuple[bool, str]:
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return False, f"no kernel for {x.dtype}"
    ragged = cu_seqlens is not None
    samples, tokens = (cu_seqlens.shape[0], x.shape[0]) if ragged else x.shape[:2]
    if slot_count(samples, tokens, ragged) >= 2**31 or x.shape[-1] > 65535 * COLUMNS:
        return False, f"a grid for {list(x.shape)} is too large"
    return True, ""


def channel_stats(
    x: Tensor, cu_seqlens: Tensor | None, token_mask: Tensor | None, mean: Tensor, m2: Tensor, l1: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch: contiguous rows and something in them, contiguous mask, checked by `pyprune.ops.channel_stats`."""
    columns, ragged = x.shape[-1], cu_seqlens is not None
    if ragged:
        samples, tokens, strides = cu_seqlens.shape[0] - 1, x.shape[0], (0, x.stride(0))
    else:
        samples, tokens, strides = x.shape[0], x.shape[1], (x.stride(0), x.stride(1))
    if samples == 0:
        return mean, m2, l1
    slots, long = slot_count(samples, tokens, ragged), tokens > SEGMENT
    partial = x.new_empty((PLANES, slots, columns) if long else (0,), dtype=torch.float64)
    counts = x.new_empty(slots if long else 0, dtype=torch.int32)
    offsets, blocks = offsets_or(cu_seqlens, mean), triton.cdiv(columns, COLUMNS)
    real = mean if token_mask is None else token_mask.view(torch.uint8)
    channel_stats_kernel[(slots, blocks)](
        x, mean, m2, l1, partial, counts, offsets, real, samples, slots, tokens, columns, *strides,
        RAGGED=ragged, MASKED=token_mask is not None, SEGMENT=SEGMENT, ROWS=ROWS, COLUMNS=COLUMNS, num_warps=WARPS,
    )  # fmt: skip
    if long:
        merge_segments_kernel[(samples, blocks)](
            partial, counts, mean, m2, l1, offsets, slots, tokens, columns,
            RAGGED=ragged, SEGMENT=SEGMENT, COLUMNS=COLUMNS, num_warps=MERGE_WARPS,
        )  # fmt: skip
    return mean, m2, l1


# What is compiled ahead of time by the tests, with no GPU: (kernel, signature, constexprs, options, limits).
def _types(names: str, kind: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), kind)


def _spec(dtype: str, kind: str) -> dict:
    ragged, masked = kind == "ragged", kind == "masked"
    return {
        "name": f"channel_stats-{dtype}-{kind}",
        "kernel": channel_stats_kernel,
        "signature": {
            "x": f"*{dtype}",
            **_types("mean m2 l1", "*fp32"),
            "partial": "*fp64",
            "counts": "*i32",
            "cu_seqlens": "*i32" if ragged else "*fp32",
            "mask": "*u8" if masked else "*fp32",
            **_types("samples slots tokens columns", "i32"),
            **_types("x_sample x_token", "i64"),
        },
        "constexprs": {"RAGGED": ragged, "MASKED": masked, "SEGMENT": SEGMENT, "ROWS": ROWS, "COLUMNS": COLUMNS},
        "divisible": ("x", "mean", "m2", "l1", "partial", "counts", "mask", "columns", "x_sample", "x_token"),
        "options": {"num_warps": WARPS},
        "max_registers": 126,
        "max_shared": 4096,
        "instructions": ("LDG.E.128",),
    }


def _merge(ragged: bool) -> dict:
    return {
        "name": f"channel_stats-merge-{'ragged' if ragged else 'dense'}",
        "kernel": merge_segments_kernel,
        "signature": {
            "partial": "*fp64",
            "counts": "*i32",
            **_types("mean m2 l1", "*fp32"),
            "cu_seqlens": "*i64" if ragged else "*fp32",
            **_types("slots tokens columns", "i32"),
        },
        "constexprs": {"RAGGED": ragged, "SEGMENT": SEGMENT, "COLUMNS": COLUMNS},
        "divisible": ("partial", "counts", "mean", "m2", "l1", "columns"),
        "options": {"num_warps": MERGE_WARPS},
        "max_registers": 40,
        "instructions": ("LDG.E.128",),
    }


AOT = [
    *(_spec(dtype, kind) for dtype, kind in (("bf16", "dense"), ("bf16", "ragged"), ("bf16", "masked"))),
    *(_spec(dtype, "dense") for dtype in ("fp16", "fp32")),
    *map(_merge, (True, False)),
]
