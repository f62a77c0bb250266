"""prod_reduce in Triton: `out[p, b, j] = sum_t sum_{c in group j} x[t, c] * y[p, t, c]`, fp32, no atomics.

One program owns (column block, segment of a sample, block of probes); see segments.py.
"""

import torch
import triton
import triton.language as tl
from pyprune.triton_kernels import COUNTS
from pyprune.triton_kernels.segments import SEGMENT, add_segments_kernel, locate, offsets_or, slot_count
from torch import Tensor

# 16 rows x 256 columns: a warp reads whole rows of 512 bytes, 16 bytes a thread, and keeps eight loads in flight.
ROWS, COLUMNS, WARPS = 16, 256, 4
# Probes that share a tile of x in registers; four take 168 to 255 and spill on sm_100. The blocks of one tile are
# neighbours in the grid, so that x comes from L2 for all but the first. Rows lie over warps and threads as they do for
# one probe, and are added in the same order.
PROBES = 2
OUTPUTS, TERMS = 32, 64  # of a fold

DOT = False  # whether tl.dot is used, which Triton's interpreter gets wrong in bfloat16


@triton.jit(do_not_specialize=COUNTS)
def prod_reduce_kernel(
    x, y, out, partial, cu_seqlens, samples, slots, probes, tokens, columns,
    x_sample, x_token, y_probe, y_sample, y_token,
    RAGGED: tl.constexpr, SEGMENT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PROBES: tl.constexpr,
):  # fmt: skip
    """Grid (slots * probe blocks, column blocks). Writes `out[p, b]` for a sample of one segment, else `partial[p,
    slot]`.
    """
    probe_blocks = (probes + PROBES - 1) // PROBES
    slot = (tl.program_id(0) // probe_blocks).to(tl.int64)
    probe = tl.program_id(0) % probe_blocks * PROBES + tl.arange(0, PROBES)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < columns
    b, first, length, begin = locate(slot, cu_seqlens, samples, tokens, RAGGED, SEGMENT)
    if begin < length or begin == 0:
        x_row = x + b * x_sample + (first + begin) * x_token
        y_row = y + b * y_sample + (first + begin) * y_token + probe.to(tl.int64)[:, None, None] * y_probe
        here = tl.minimum(length - begin, SEGMENT).to(tl.int32)
        row = tl.arange(0, ROWS)
        acc = tl.zeros((PROBES, ROWS, COLUMNS), tl.float32)
        for t in range(0, here, ROWS):
            at = (t + row).to(tl.int64)[None, :, None]
            mask = ((t + row) < here)[None, :, None] & inside[None, None, :]
            left = tl.load(x_row + at * x_token + column[None, None, :], mask=mask, other=0.0)
            mask = mask & (probe < probes)[:, None, None]
            right = tl.load(y_row + at * y_token + column[None, None, :], mask=mask, other=0.0)
            acc += left.to(tl.float32) * right.to(tl.float32)
        sums = tl.sum(acc, 1)
        mask = (probe < probes)[:, None] & inside[None, :]
        if length <= SEGMENT:
            row_of_probe = probe.to(tl.int64) * samples + b
            tl.store(out + row_of_probe[:, None] * columns + column[None, :], sums, mask=mask)
        else:
            row_of_probe = probe.to(tl.int64) * slots + slot
            tl.store(partial + row_of_probe[:, None] * columns + column[None, :], sums, mask=mask)


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
    ragged = cu_seqlens is not None
    samples, tokens = (cu_seqlens.shape[0], x.shape[0]) if ragged else x.shape[:2]
    probes = y.shape[0] if y.dim() > x.dim() else 1
    programs = slot_count(samples, tokens, ragged) * probes
    if programs >= 2**31 or x.shape[-1] > 65535 * COLUMNS or probes > 65535:
        return False, f"a grid for {list(y.shape)} is too large"
    return True, ""


def prod_reduce(x: Tensor, y: Tensor, cu_seqlens: Tensor | None, group: int, mod_group: int) -> Tensor:
    """Launch: two tensors with contiguous rows and something in them, checked by `pyprune.ops.prod_reduce`."""
    columns, leading = x.shape[-1], y.shape[: y.dim() - x.dim()]
    probes, y_probe = (y.shape[0], y.stride(0)) if leading else (1, 0)
    ragged = cu_seqlens is not None
    if ragged:
        samples, tokens = cu_seqlens.shape[0] - 1, x.shape[0]
        strides = 0, x.stride(0), y_probe, 0, y.stride(-2)
    else:
        samples, tokens = x.shape[:2]
        strides = x.stride(0), x.stride(1), y_probe, y.stride(-3), y.stride(-2)
    slots, long = slot_count(samples, tokens, ragged), tokens > SEGMENT
    sums = x.new_empty((*leading, samples, columns), dtype=torch.float32)
    if samples == 0:
        return sums.new_empty((*leading, 0, mod_group or columns // group))
    partial = x.new_empty((probes, slots, columns), dtype=torch.float32) if long else sums
    offsets = offsets_or(cu_seqlens, sums)
    together = min(triton.next_power_of_2(probes), PROBES)
    blocks = triton.cdiv(columns, COLUMNS)
    prod_reduce_kernel[(slots * triton.cdiv(probes, together), blocks)](
        x, y, sums, partial, offsets, samples, slots, probes, tokens, columns, *strides,
        RAGGED=ragged, SEGMENT=SEGMENT, ROWS=ROWS, COLUMNS=COLUMNS, PROBES=together, num_warps=WARPS,
    )  # fmt: skip
    if long:
        add_segments_kernel[(samples, blocks, probes)](
            partial, sums, offsets, tokens, columns, RAGGED=ragged, SEGMENT=SEGMENT, COLUMNS=COLUMNS,
            samples=samples, slots=slots, num_warps=WARPS,
        )  # fmt: skip
    if group == 1 and not mod_group:
        return sums
    outputs = mod_group or columns // group
    out = sums.new_empty((*leading, samples, outputs))
    fold_kernel[(probes * samples, triton.cdiv(outputs, OUTPUTS))](
        sums, out, columns, outputs, columns // outputs, MODULUS=mod_group > 0, OUTPUTS=OUTPUTS, TERMS=TERMS
    )
    return out


# What is compiled ahead of time by the tests, with no GPU: (kernel, signature, constexprs, options, limits).
def _types(names: str, kind: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), kind)


def _spec(dtype: str, ragged: bool, probes: int, max_registers: int) -> dict:
    strides = "x_sample x_token y_probe y_sample y_token"
    return {
        "name": f"prod_reduce-{dtype}-{'ragged' if ragged else 'dense'}-{probes}",
        "kernel": prod_reduce_kernel,
        "signature": {
            **_types("x y", f"*{dtype}"),
            **_types("out partial", "*fp32"),
            "cu_seqlens": "*i32" if ragged else "*fp32",
            **_types("samples slots probes tokens columns", "i32"),
            **_types(strides, "i64"),
        },
        "constexprs": {"RAGGED": ragged, "SEGMENT": SEGMENT, "ROWS": ROWS, "COLUMNS": COLUMNS, "PROBES": probes},
        "divisible": ("x", "y", "out", "partial", "columns", *strides.split()),
        "options": {"num_warps": WARPS},
        "max_registers": max_registers,
        "max_shared": 2048,
        "instructions": ("LDG.E.128",),
    }


def _add_segments(ragged: bool) -> dict:
    return {
        "name": f"prod_reduce-add_segments-{'ragged' if ragged else 'dense'}",
        "kernel": add_segments_kernel,
        "signature": {
            **_types("partial out", "*fp32"),
            "cu_seqlens": "*i64" if ragged else "*fp32",
            **_types("tokens columns samples slots", "i32"),
        },
        "constexprs": {"RAGGED": ragged, "SEGMENT": SEGMENT, "COLUMNS": COLUMNS},
        "divisible": ("partial", "out", "columns"),
        "options": {"num_warps": WARPS},
        "max_registers": 30,
        "instructions": ("LDG.E.64",),
    }


def _fold(modulus: bool) -> dict:
    # 12 heads of 64 channels, and one channel of 12 heads.
    return {
        "name": f"prod_reduce-fold-{'modulus' if modulus else 'neighbours'}",
        "kernel": fold_kernel,
        "signature": {**_types("sums out", "*fp32"), **_types("columns outputs group", "i32")},
        "constexprs": {"MODULUS": modulus, "OUTPUTS": OUTPUTS, "TERMS": TERMS},
        "divisible": ("sums", "out", "columns", "outputs" if modulus else "group"),
        "options": {},
        "max_registers": 48,
        "max_shared": 512,
        "instructions": ("LDG.E.128",),
        "narrow_products": 1,  # the number of a column in its row
    }


AOT = [
    *(
        _spec(dtype, ragged, 1, 72)
        for dtype, ragged in (("bf16", True), ("bf16", False), ("fp16", True), ("fp32", False))
    ),
    *(_spec("bf16", ragged, PROBES, 140) for ragged in (True, False)),
    _spec("fp32", False, PROBES, 168),
    *map(_add_segments, (True, False)),
    *map(_fold, (True, False)),
]
