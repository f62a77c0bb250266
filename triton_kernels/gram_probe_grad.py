"""gram_probe_grad in Triton: norms of rows, their product with signs that are made in registers, and its projection.

The signs, of which there are T x T, never go to memory. Every tile of columns makes them anew: some 20 integer
operations each, against 256 of a product over 128 columns.
"""

import torch
import triton
import triton.language as tl
from pyprune.triton_kernels import COUNTS
from pyprune.triton_kernels.linear_cross_entropy import halves, noise
from torch import Tensor

ROWS, DEPTH, WARPS, STAGES = 64, 64, 4, 3
COLUMNS, COLUMNS_FP32, DEPTH_FP32 = 128, 64, 32
# Of the kernels that read rows: rows at once, and columns of each at a time.
FEW, WIDE = 4, 256

DOT = True  # whether tl.dot is used, which Triton's interpreter gets wrong in bfloat16

# As in pyprune/ops/gram_probe_grad.py.
ROW_LOW, ROW_HIGH = tl.constexpr(0x3C6EF35F), tl.constexpr(0x5851F42D)


@triton.jit(do_not_specialize=COUNTS)
def inverse_norms_kernel(
    f, token_mask, inverse, tokens, width, f_sample, f_token,
    MASK: tl.constexpr, FEW: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Grid (rows of a sample / FEW, samples). inverse[b, t] = 1 / |f[b, t]|; 0 where that is 0, or no real token."""
    b = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * FEW + tl.arange(0, FEW)
    live = row < tokens
    real = live
    if MASK:
        real = live & (tl.load(token_mask + b * tokens + row, mask=live, other=0) != 0)
    base = f + b * f_sample + row.to(tl.int64)[:, None] * f_token
    total = tl.zeros((FEW, WIDE), tl.float32)
    for first in range(0, width, WIDE):
        column = first + tl.arange(0, WIDE)
        x = tl.load(base + column[None, :], mask=real[:, None] & (column < width)[None, :], other=0.0).to(tl.float32)
        total += x * x
    square = tl.sum(total, 1)
    tl.store(
        inverse + b * tokens + row,
        tl.where(square > 0, 1.0 / tl.sqrt(tl.where(square > 0, square, 1.0)), 0.0),
        mask=live,
    )


@triton.jit(do_not_specialize=COUNTS)
def probe_rows_kernel(
    f, inverse, keys, along, radial, tokens, width, tiles, f_sample, f_token,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Grid (rows of a sample / ROWS, columns / COLUMNS, samples), r the rows of f at norm 1.

    along[b, i] = sum over j of s_ij r_j; radial[b, i, column tile] = the part of <r_i, along_i> of these columns.
    """
    b = tl.program_id(2).to(tl.int64)
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < width
    low, high = halves(tl.load(keys + b))
    sample = f + b * f_sample
    acc = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, tokens, DEPTH):
        j = first + tl.arange(0, DEPTH)
        scale = tl.load(inverse + b * tokens + j, mask=j < tokens, other=0.0)
        at = sample + j.to(tl.int64)[:, None] * f_token + column[None, :]
        # Rows of norm 0 are not read: they may be padding, and hold NaN.
        r = tl.load(at, mask=(scale > 0)[:, None] & inside[None, :], other=0.0)
        r = (r.to(tl.float32) * scale[:, None]).to(f.dtype.element_ty)
        larger = tl.maximum(i[:, None], j[None, :]).to(tl.uint32)
        smaller = tl.minimum(i[:, None], j[None, :]).to(tl.uint32)
        bits = noise(smaller >> 5, low + larger * ROW_LOW, high + larger * ROW_HIGH)
        sign = tl.where((bits >> (smaller & 31)) & 1 == 0, 1.0, -1.0)
        sign = tl.where(larger == smaller, 0.0, sign)
        acc = tl.dot(sign.to(f.dtype.element_ty), r, acc, input_precision="tf32x3")
    live = i < tokens
    scale = tl.load(inverse + b * tokens + i, mask=live, other=0.0)
    at = i.to(tl.int64)[:, None]
    own = tl.load(sample + at * f_token + column[None, :], mask=(scale > 0)[:, None] & inside[None, :], other=0.0)
    part = tl.sum(own.to(tl.float32) * scale[:, None] * acc, 1)
    row = b * tokens + i
    tl.store(radial + row * tiles + tl.program_id(1), part, mask=live)
    tl.store(along + row[:, None] * width + column[None, :], acc, mask=live[:, None] & inside[None, :])


@triton.jit(do_not_specialize=COUNTS)
def tangent_kernel(
    f, inverse, along, radial, out, tokens, width, tiles, f_sample, f_token,
    FEW: tl.constexpr, WIDE: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Grid (rows of a sample / FEW, samples). out = sqrt(2) (along - r <r, along>) / |f|."""
    b = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0) * FEW + tl.arange(0, FEW)
    live = i < tokens
    row = b * tokens + i
    tile = tl.arange(0, TILES)
    parts = tl.load(
        radial + row[:, None] * tiles + tile[None, :], mask=live[:, None] & (tile < tiles)[None, :], other=0
    )
    dot = tl.sum(parts, 1)
    scale = tl.load(inverse + row, mask=live, other=0.0)
    base = f + b * f_sample + i.to(tl.int64)[:, None] * f_token
    for first in range(0, width, WIDE):
        column = first + tl.arange(0, WIDE)
        inside = live[:, None] & (column < width)[None, :]
        x = tl.load(base + column[None, :], mask=inside & (scale > 0)[:, None], other=0.0).to(tl.float32)
        g = tl.load(along + row[:, None] * width + column[None, :], mask=inside, other=0.0)
        y = 1.4142135623730951 * scale[:, None] * (g - x * (scale * dot)[:, None])
        tl.store(out + row[:, None] * width + column[None, :], y.to(out.dtype.element_ty), mask=inside)


def tiling(dtype: torch.dtype) -> tuple[int, int]:
    return (COLUMNS_FP32, DEPTH_FP32) if dtype == torch.float32 else (COLUMNS, DEPTH)


def gram_probe_grad(f: Tensor, keys: Tensor, token_mask: Tensor | None) -> Tensor:
    """Launch: rows of f are made contiguous; workspace of one fp32 tensor of f's size."""
    out = f.new_empty(f.shape)
    if f.numel() == 0:
        return out
    samples, tokens, width = f.shape
    f = f if f.stride(2) == 1 else f.contiguous()
    mask = f if token_mask is None else token_mask.contiguous().view(torch.uint8)
    columns, depth = tiling(f.dtype)
    tiles = triton.cdiv(width, columns)
    inverse = f.new_empty((samples, tokens), dtype=torch.float32)
    along = f.new_empty((samples, tokens, width), dtype=torch.float32)
    radial = f.new_empty((samples, tokens, tiles), dtype=torch.float32)
    strides = f.stride(0), f.stride(1)
    few = triton.cdiv(tokens, FEW), samples
    inverse_norms_kernel[few](
        f, mask, inverse, tokens, width, *strides,
        MASK=token_mask is not None, FEW=FEW, WIDE=WIDE, num_warps=WARPS,
    )  # fmt: skip
    probe_rows_kernel[(triton.cdiv(tokens, ROWS), tiles, samples)](
        f, inverse, keys.contiguous(), along, radial, tokens, width, tiles, *strides,
        ROWS=ROWS, COLUMNS=columns, DEPTH=depth, num_warps=WARPS, num_stages=STAGES,
    )  # fmt: skip
    tangent_kernel[few](
        f, inverse, along, radial, out, tokens, width, tiles, *strides,
        FEW=FEW, WIDE=WIDE, TILES=triton.next_power_of_2(tiles), num_warps=WARPS,
    )  # fmt: skip
    return out


def _spec(kernel: triton.JITFunction, dtype: str, mask: bool = False) -> dict:
    columns, depth = (COLUMNS_FP32, DEPTH_FP32) if dtype == "fp32" else (COLUMNS, DEPTH)
    types = {"f": f"*{dtype}", "out": f"*{dtype}", "token_mask": "*u8" if mask else f"*{dtype}", "keys": "*i64"}
    types |= dict.fromkeys(("inverse", "along", "radial"), "*fp32")
    types |= dict.fromkeys(("tokens", "width", "tiles"), "i32") | dict.fromkeys(("f_sample", "f_token"), "i64")
    own = {name: types[name] for name in kernel.arg_names if name in types}
    product = kernel is probe_rows_kernel
    constants = {"MASK": mask, "FEW": FEW, "WIDE": WIDE, "ROWS": ROWS, "COLUMNS": columns, "DEPTH": depth, "TILES": 8}
    options = {"num_warps": WARPS, "num_stages": STAGES} if product else {"num_warps": WARPS}
    return {
        "name": f"{kernel.fn.__name__.removesuffix('_kernel')}-{dtype}{'-mask' if mask else ''}",
        "kernel": kernel,
        "signature": own,
        "constexprs": {name: value for name, value in constants.items() if name in kernel.arg_names},
        "divisible": tuple(name for name in own if name not in ("tokens", "tiles")),
        "options": options,
        "max_registers": 255 if product else 128,
        "max_shared": 98320 if product else 4096,
        "tensor_cores": product,
    }


AOT = [
    *(_spec(probe_rows_kernel, dtype) for dtype in ("bf16", "fp16", "fp32")),
    *(_spec(inverse_norms_kernel, dtype, mask) for dtype, mask in (("bf16", False), ("fp32", True))),
    *(_spec(tangent_kernel, dtype) for dtype in ("bf16", "fp32")),
]
