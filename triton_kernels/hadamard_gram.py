"""hadamard_gram in Triton: `ata = blocksum[(h^T h) * (w w^T)]` with both products in registers, and `atb` likewise.

Nothing of size channels x channels goes to memory. Only tiles on and above the diagonal are computed; each writes its
mirror.
"""

import torch
import triton
import triton.language as tl
from pyprune.triton_kernels import COUNTS
from torch import Tensor

TILE, DEPTH, WARPS, STAGES = 128, 64, 8, 3
# fp32 operands take three tf32 products each for fp32 accuracy (ordinary tf32 keeps 10 bits, and the normal equations
# square the condition number): smaller tiles keep the split operands in registers.
TILE_FP32, DEPTH_FP32 = 64, 32

DOT = True  # whether tl.dot is used, which Triton's interpreter gets wrong in bfloat16


@triton.jit
def _gram_tile(p, rows, columns, row_limit, depth, p_channel, p_inner, DEPTH: tl.constexpr, TILE: tl.constexpr):
    """`sum_i p[i, rows] * p[i, columns]` over the inner dimension, fp32."""
    acc = tl.zeros((TILE, TILE), tl.float32)
    for first in range(0, depth, DEPTH):
        inner = first + tl.arange(0, DEPTH)
        live = inner < depth
        at = inner.to(tl.int64) * p_inner
        left = tl.load(
            p + rows.to(tl.int64)[:, None] * p_channel + at[None, :],
            mask=(rows < row_limit)[:, None] & live[None, :], other=0.0,
        )  # fmt: skip
        right = tl.load(
            p + at[:, None] + columns.to(tl.int64)[None, :] * p_channel,
            mask=live[:, None] & (columns < row_limit)[None, :], other=0.0,
        )  # fmt: skip
        acc = tl.dot(left, right, acc, input_precision="tf32x3")
    return acc


@triton.jit(do_not_specialize=COUNTS)
def hadamard_gram_kernel(
    h, w, ata, units, channels, tokens, width, h_token, w_channel, w_inner,
    GROUP: tl.constexpr, TILE: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Grid: tiles on and above the diagonal, `tiles * (tiles + 1) / 2`. A tile holds whole units: GROUP divides
    TILE.
    """
    tiles = tl.cdiv(channels, TILE)
    # Row i of the triangle begins at i * tiles - i * (i - 1) / 2; the square root may be off by one, the loops mend it.
    pid = tl.program_id(0)
    span = 2.0 * tiles + 1.0
    i = ((span - tl.sqrt(tl.maximum(span * span - 8.0 * pid, 0.0))) * 0.5).to(tl.int32)
    while i * tiles - i * (i - 1) // 2 > pid:
        i -= 1
    while (i + 1) * tiles - (i + 1) * i // 2 <= pid:
        i += 1
    j = i + pid - (i * tiles - i * (i - 1) // 2)

    rows = i * TILE + tl.arange(0, TILE)
    columns = j * TILE + tl.arange(0, TILE)
    product = _gram_tile(h, rows, columns, channels, tokens, 1, h_token, DEPTH, TILE)
    product *= _gram_tile(w, rows, columns, channels, width, w_channel, w_inner, DEPTH, TILE)
    SIDE: tl.constexpr = TILE // GROUP
    if GROUP > 1:
        product = tl.sum(tl.reshape(product, (TILE, SIDE, GROUP)), 2)
        product = tl.sum(tl.reshape(product, (SIDE, GROUP, SIDE)), 1)
    a = (i * SIDE + tl.arange(0, SIDE)).to(tl.int64)[:, None]
    b = (j * SIDE + tl.arange(0, SIDE)).to(tl.int64)[None, :]
    # On the diagonal both stores meet the same elements: the upper triangle alone decides, so that ata is symmetric.
    mask = (a < units) & (b < units) & (a <= b)
    tl.store(ata + a * units + b, product, mask=mask)
    tl.store(ata + b * units + a, product, mask=mask)


@triton.jit(do_not_specialize=COUNTS)
def project_kernel(
    h, target, w, partial, channels, tokens, width, h_token, t_token, w_channel, w_inner,
    TILE: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Grid (channel tiles, width tiles). partial[width tile, c] = sum over the tile of (h^T target) * w, row c."""
    rows = tl.program_id(0) * TILE + tl.arange(0, TILE)
    columns = tl.program_id(1) * TILE + tl.arange(0, TILE)
    row_in, column_in = rows < channels, columns < width
    acc = tl.zeros((TILE, TILE), tl.float32)
    for first in range(0, tokens, DEPTH):
        token = first + tl.arange(0, DEPTH)
        live = token < tokens
        at = token.to(tl.int64)
        left = tl.load(h + at[None, :] * h_token + rows[:, None], mask=row_in[:, None] & live[None, :], other=0.0)
        right = tl.load(
            target + at[:, None] * t_token + columns[None, :], mask=live[:, None] & column_in[None, :], other=0.0
        )
        acc = tl.dot(left, right, acc, input_precision="tf32x3")
    weight = tl.load(
        w + rows.to(tl.int64)[:, None] * w_channel + columns.to(tl.int64)[None, :] * w_inner,
        mask=row_in[:, None] & column_in[None, :], other=0.0,
    )  # fmt: skip
    sums = tl.sum(acc * weight.to(tl.float32), 1)
    tl.store(partial + tl.program_id(1).to(tl.int64) * channels + rows, sums, mask=row_in)


def tiling(dtype: torch.dtype) -> tuple[int, int]:
    return (TILE_FP32, DEPTH_FP32) if dtype == torch.float32 else (TILE, DEPTH)


def supports(h: Tensor, w: Tensor, target: Tensor | None, group: int) -> tuple[bool, str]:
    if h.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return False, f"no kernel for {h.dtype}"
    tile, _ = tiling(h.dtype)
    if tile % group != 0:
        return False, f"group {group} does not divide the tile of {tile} channels"
    return True, ""


def hadamard_gram(h: Tensor, w: Tensor, target: Tensor | None, group: int) -> tuple[Tensor, Tensor]:
    """Launch: any strides of w (it is usually a transposed weight); rows of h and target are made contiguous."""
    tokens, channels = h.shape
    width, units = w.shape[1], channels // group
    h = h if h.stride(1) == 1 else h.contiguous()
    tile, depth = tiling(h.dtype)
    tiles = triton.cdiv(channels, tile)
    ata = h.new_empty((units, units), dtype=torch.float32)
    if units == 0 or target is None:
        atb = h.new_zeros((units,), dtype=torch.float32)
    if units == 0:
        return ata, atb
    options = {"TILE": tile, "DEPTH": depth, "num_warps": WARPS, "num_stages": STAGES}
    hadamard_gram_kernel[(tiles * (tiles + 1) // 2,)](
        h, w, ata, units, channels, tokens, width, h.stride(0), w.stride(0), w.stride(1), GROUP=group, **options
    )
    if target is not None:
        target = target if target.stride(1) == 1 else target.contiguous()
        partial = h.new_empty((triton.cdiv(width, tile), channels), dtype=torch.float32)
        project_kernel[(tiles, partial.shape[0])](
            h, target, w, partial, channels, tokens, width, h.stride(0), target.stride(0), *w.stride(), **options
        )
        atb = partial.sum(0).unflatten(0, (units, group)).sum(1)
    return ata, atb


def _spec(dtype: str, group: int, project: bool = False) -> dict:
    tile, depth = (TILE_FP32, DEPTH_FP32) if dtype == "fp32" else (TILE, DEPTH)
    if project:
        pointers, constants = ("h", "target", "w", "partial"), {}
        scalars = {"channels": "i32", "tokens": "i32", "width": "i32"}
        strides = ("h_token", "t_token", "w_channel", "w_inner")
    else:
        pointers, constants = ("h", "w", "ata"), {"GROUP": group}
        scalars = {"units": "i32", "channels": "i32", "tokens": "i32", "width": "i32"}
        strides = ("h_token", "w_channel", "w_inner")
    outputs = ("ata", "partial")
    # The transposed weight of a Linear: w_channel is 1, which Triton turns into a constant; w_inner is the row length.
    return {
        "name": f"{'project' if project else 'hadamard_gram'}-{dtype}-group{group}",
        "kernel": project_kernel if project else hadamard_gram_kernel,
        "signature": {
            **{p: "*fp32" if p in outputs else f"*{dtype}" for p in pointers},
            **scalars,
            **dict.fromkeys((s for s in strides if s != "w_channel"), "i64"),
        },
        "constexprs": {**constants, "w_channel": 1, "TILE": tile, "DEPTH": depth},
        "divisible": (*pointers, *(scalars.keys() - {"tokens"}), *(s for s in strides if s != "w_channel")),
        "options": {"num_warps": WARPS, "num_stages": STAGES},
        "max_registers": 255,
        "max_shared": 98320,
        # Of the triangle's tile numbers, which are no addresses.
        "narrow_products": 0 if project else 6,
        "tensor_cores": True,
    }


AOT = [
    *(_spec(dtype, group) for dtype, group in (("bf16", 64), ("bf16", 1), ("fp16", 64), ("fp32", 1), ("fp32", 64))),
    *(_spec(dtype, 1, project=True) for dtype in ("bf16", "fp32")),
]
