"""fisher_update_ in Triton: `F[n] += sum_s (scale[s] * g[s, n])^2`, summed in float64, no atomics.

One program owns (column block, CHUNK rows) and writes a partial sum; a second kernel adds those in order to F.
"""

import torch
import triton
import triton.language as tl
from pyprune.triton_kernels import COUNTS
from torch import Tensor

# 16 rows x 128 columns: 16 float64 sums a thread. A call with S=2048, n=3072 has 24 x 16 programs, three for each of an
# H100's processors, and its partial sums are 1/32 of the bytes of a float32 g.
ROWS, COLUMNS, WARPS, CHUNK = 16, 128, 4, 128

DOT = False  # whether tl.dot is used, which Triton's interpreter gets wrong in bfloat16


@triton.jit(do_not_specialize=COUNTS)
def square_sum_kernel(
    g, scale, partial, rows, columns, g_row,
    SCALED: tl.constexpr, CHUNK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Grid (chunks, column blocks)."""
    chunk = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < columns
    row = tl.arange(0, ROWS)
    acc = tl.zeros((ROWS, COLUMNS), tl.float64)
    for first in range(0, CHUNK, ROWS):
        at = chunk * CHUNK + (first + row)
        here = at < rows
        values = tl.load(g + at[:, None] * g_row + column[None, :], mask=here[:, None] & inside[None, :], other=0.0)
        values = values.to(tl.float32).to(tl.float64)
        if SCALED:
            values *= tl.load(scale + at, mask=here, other=0.0).to(tl.float64)[:, None]
        acc += values * values
    tl.store(partial + chunk * columns + column, tl.sum(acc, 0), mask=inside)


@triton.jit(do_not_specialize=COUNTS)
def add_kernel(F, partial, chunks, columns, stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Grid (column blocks,). Adds the partial sums of all chunks to F."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < columns
    row = tl.arange(0, ROWS)
    acc = tl.zeros((ROWS, COLUMNS), tl.float64)
    for first in range(0, chunks, ROWS):
        at = (first + row).to(tl.int64)
        mask = (at < chunks)[:, None] & inside[None, :]
        acc += tl.load(partial + at[:, None] * columns + column[None, :], mask=mask, other=0.0)
    into = F + column.to(tl.int64) * stride
    sums = tl.load(into, mask=inside, other=0.0).to(tl.float64) + tl.sum(acc, 0)
    tl.store(into, sums.to(F.dtype.element_ty), mask=inside)


def supports(F: Tensor, g: Tensor, scale: Tensor | None) -> tuple[bool, str]:
    if g.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return False, f"no kernel for {g.dtype}"
    if g.shape[0] >= 2**31 or g.shape[1] > 65535 * COLUMNS:
        return False, f"a grid for {list(g.shape)} is too large"
    return True, ""


def fisher_update_(F: Tensor, g: Tensor, scale: Tensor | None) -> None:
    """Launch: a g with contiguous rows and something in it, checked by `pyprune.ops.fisher_update_`."""
    rows, columns = g.shape
    chunks, blocks = triton.cdiv(rows, CHUNK), triton.cdiv(columns, COLUMNS)
    partial = g.new_empty((chunks, columns), dtype=torch.float64)
    square_sum_kernel[(chunks, blocks)](
        g, partial if scale is None else scale, partial, rows, columns, g.stride(0),
        SCALED=scale is not None, CHUNK=CHUNK, ROWS=ROWS, COLUMNS=COLUMNS, num_warps=WARPS,
    )  # fmt: skip
    add_kernel[(blocks,)](F, partial, chunks, columns, F.stride(0), ROWS=ROWS, COLUMNS=COLUMNS, num_warps=WARPS)


# What is compiled ahead of time by the tests, with no GPU: (kernel, signature, constexprs, options, limits).
def _squares(dtype: str, scaled: bool) -> dict:
    return {
        "name": f"square_sum-{dtype}-{'scaled' if scaled else 'plain'}",
        "kernel": square_sum_kernel,
        "signature": {
            "g": f"*{dtype}",
            "scale": "*fp32" if scaled else "*fp64",
            "partial": "*fp64",
            "rows": "i32",
            "columns": "i32",
            "g_row": "i64",
        },
        "constexprs": {"SCALED": scaled, "CHUNK": CHUNK, "ROWS": ROWS, "COLUMNS": COLUMNS},
        "divisible": ("g", "scale", "partial", "columns", "g_row"),
        "options": {"num_warps": WARPS},
        "max_registers": 72,
        "max_shared": 2048,
        "instructions": ("LDG.E.128",),
    }


def _add(dtype: str) -> dict:
    return {
        "name": f"fisher_add-{dtype}",
        "kernel": add_kernel,
        "signature": {"F": f"*{dtype}", "partial": "*fp64", "chunks": "i32", "columns": "i32", "stride": "i64"},
        "constexprs": {"ROWS": ROWS, "COLUMNS": COLUMNS},
        "divisible": ("F", "partial", "columns"),
        "options": {"num_warps": WARPS},
        "max_registers": 62,
        "max_shared": 2048,
        "instructions": ("LDG.E.128",),
    }


AOT = [
    *(_squares(dtype, scaled) for dtype, scaled in (("fp32", False), ("fp32", True), ("bf16", True), ("fp16", False))),
    _add("fp32"),
    _add("fp64"),
]
