"""prod_reduce in Triton: `out[b, j] = sum_t sum_{c in group j} x[t, c] * y[t, c]`, fp32, no atomics.

One program owns (column block, segment of a sample); see segments.py.
"""

import torch
import triton
import triton.language as tl
from pyprune.triton_kernels.segments import SEGMENT, add_segments_kernel, locate, offsets_or, slot_count
from torch import Tensor

# 16 rows x 256 columns: a warp reads whole rows of 512 bytes, 16 bytes a thread, and keeps eight loads in flight.
ROWS, COLUMNS, WARPS = 16, 256, 4

DOT = False  # whether tl.dot is used, which Triton's interpreter gets wrong in bfloat16


@triton.jit
def prod_reduce_kernel(
    x, y, out, partial, cu_seqlens, samples, tokens, columns,
    x_sample, x_token, y_sample, y_token,
    RAGGED: tl.constexpr, SEGMENT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Grid (slots, column blocks). Writes `out[b]` for a sample of one segment and `partial[slot]` otherwise."""
    slot = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < columns
    b, first, length, begin = locate(slot, cu_seqlens, samples, tokens, RAGGED, SEGMENT)
    if begin < length or begin == 0:
        x_row = x + b * x_sample + (first + begin) * x_token
        y_row = y + b * y_sample + (first + begin) * y_token
        here = tl.minimum(length - begin, SEGMENT).to(tl.int32)
        row = tl.arange(0, ROWS)
        acc = tl.zeros((ROWS, COLUMNS), tl.float32)
        for t in range(0, here, ROWS):
            at = (t + row).to(tl.int64)[:, None]
            mask = ((t + row) < here)[:, None] & inside[None, :]
            left = tl.load(x_row + at * x_token + column[None, :], mask=mask, other=0.0)
            right = tl.load(y_row + at * y_token + column[None, :], mask=mask, other=0.0)
            acc += left.to(tl.float32) * right.to(tl.float32)
        sums = tl.sum(acc, 0)
        if length <= SEGMENT:
            tl.store(out + b * columns + column, sums, mask=inside)
        else:
            tl.store(partial + slot * columns + column, sums, mask=inside)


@triton.jit
def fold_kernel(sums, out, columns, outputs, group, MODULUS: tl.constexpr, OUTPUTS: tl.constexpr, TERMS: tl.constexpr):
    """Grid (samples, output blocks). Sums `group` columns per output: neighbours, or those congruent modulo
    `outputs`.
    """
    b = tl.program_id(0).to(tl.int64)
    output = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    acc = tl.zeros((OUTPUTS, TERMS), tl.float32)
    for first in range(0, group, TERMS):
        term = first + tl.arange(0, TERMS)
        if MODULUS:
            column = term[None, :] * outputs + output[:, None]
        else:
            column = output[:, None] * group + term[None, :]
        mask = (output < outputs)[:, None] & (term < group)[None, :]
        acc += tl.load(sums + b * columns + column, mask=mask, other=0.0)
    tl.store(out + b * outputs + output, tl.sum(acc, 1), mask=output < outputs)


def supports(x: Tensor, y: Tensor, cu_seqlens: Tensor | None, group: int, mod_group: int) -> tuple[bool, str]:
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return False, f"no kernel for {x.dtype}"
    slots = x.shape[0] + (x.shape[0] // SEGMENT if cu_seqlens is None else cu_seqlens.shape[0])
    if slots >= 2**31 or x.shape[-1] > 65535 * COLUMNS:
        return False, f"a grid for {list(x.shape)} is too large"
    return True, ""


def prod_reduce(x: Tensor, y: Tensor, cu_seqlens: Tensor | None, group: int, mod_group: int) -> Tensor:
    """Launch: two tensors with contiguous rows and something in them, checked by `pyprune.ops.prod_reduce`."""
    columns = x.shape[-1]
    ragged = cu_seqlens is not None
    if ragged:
        samples, tokens = cu_seqlens.shape[0] - 1, x.shape[0]
        strides = 0, x.stride(0), 0, y.stride(0)
    else:
        samples, tokens = x.shape[:2]
        strides = x.stride(0), x.stride(1), y.stride(0), y.stride(1)
    slots, long = slot_count(samples, tokens, ragged), tokens > SEGMENT
    sums = x.new_empty((samples, columns), dtype=torch.float32)
    if samples == 0:
        return sums.new_empty((0, mod_group or columns // group))
    partial = x.new_empty((slots, columns), dtype=torch.float32) if long else sums
    offsets = offsets_or(cu_seqlens, sums)
    blocks = triton.cdiv(columns, COLUMNS)
    prod_reduce_kernel[(slots, blocks)](
        x, y, sums, partial, offsets, samples, tokens, columns, *strides,
        RAGGED=ragged, SEGMENT=SEGMENT, ROWS=ROWS, COLUMNS=COLUMNS, num_warps=WARPS,
    )  # fmt: skip
    if long:
        add_segments_kernel[(samples, blocks)](
            partial, sums, offsets, tokens, columns, RAGGED=ragged, SEGMENT=SEGMENT, COLUMNS=COLUMNS, num_warps=WARPS
        )
    if group == 1 and not mod_group:
        return sums
    outputs = mod_group or columns // group
    out = sums.new_empty((samples, outputs))
    fold_kernel[(samples, triton.cdiv(outputs, 32))](
        sums, out, columns, outputs, columns // outputs, MODULUS=mod_group > 0, OUTPUTS=32, TERMS=64
    )
    return out


# What is compiled ahead of time by the tests, with no GPU: (kernel, signature, constexprs, options, limits).
def _spec(dtype: str, ragged: bool) -> dict:
    offsets = "*i32" if ragged else "*fp32"
    return {
        "name": f"prod_reduce-{dtype}-{'ragged' if ragged else 'dense'}",
        "kernel": prod_reduce_kernel,
        "signature": {
            "x": f"*{dtype}",
            "y": f"*{dtype}",
            "out": "*fp32",
            "partial": "*fp32",
            "cu_seqlens": offsets,
            "samples": "i32",
            "tokens": "i32",
            "columns": "i32",
            "x_sample": "i64",
            "x_token": "i64",
            "y_sample": "i64",
            "y_token": "i64",
        },
        "constexprs": {"RAGGED": ragged, "SEGMENT": SEGMENT, "ROWS": ROWS, "COLUMNS": COLUMNS},
        "divisible": ("x", "y", "out", "partial", "columns", "x_sample", "x_token", "y_sample", "y_token"),
        "options": {"num_warps": WARPS},
        "max_registers": 66,
        "max_shared": 2048,
        "instructions": ("LDG.E.128",),
    }


AOT = [_spec("bf16", True), _spec("bf16", False), _spec("fp16", True), _spec("fp32", False)]
