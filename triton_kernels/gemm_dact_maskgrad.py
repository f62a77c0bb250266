"""gemm_dact_maskgrad in Triton: `dy @ w2` in registers, then the backward of the activation with both mask gradients.

One program owns a tile of tokens of one sample and a block of columns. Tiles are the segments of segments.py, shorter
ones: a tile never straddles samples, so no atomics and a sample's bits do not depend on its neighbours.
"""

import torch
import triton
import triton.language as tl
from pyprune.triton_kernels import COUNTS
from pyprune.triton_kernels.activations import activate, strides, zero_outside
from pyprune.triton_kernels.segments import add_segments_kernel, locate, offsets_or, slot_count
from torch import Tensor

DOT = True  # whether tl.dot is used, which Triton's interpreter gets wrong in bfloat16
WARPS, STAGES = 8, 3
# Programs run over this many tiles of tokens before they go to the next columns. At d = 4096, 132 of them then read 16
# tiles of dy and 9 blocks of w2, 36 MB, where column by column it would be 132 tiles and one block, 140 MB.
GROUP = 16
ADD_COLUMNS = 256


@triton.jit
def _finish(
    grad, pre_row, up_row, dpre_row, dup_row, after, before, at, here, column, columns, pre_token, up_token,
    ACT: tl.constexpr, GATED: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """The activation's backward on a tile of dL/d(activation). In PARTS column parts, one after the other: what a part
    loads and computes takes as many registers as its accumulators several times over.
    """
    TOKENS: tl.constexpr = grad.shape[0]
    if PARTS > 1:
        HALF: tl.constexpr = grad.shape[1] // 2
        left, right = tl.split(tl.permute(tl.reshape(grad, (TOKENS, 2, HALF)), (0, 2, 1)))
        _finish(
            left, pre_row, up_row, dpre_row, dup_row, after, before, at, here, column, columns, pre_token, up_token,
            ACT, GATED, PARTS // 2,
        )  # fmt: skip
        _finish(
            right, pre_row, up_row, dpre_row, dup_row, after, before, at, here, column + HALF, columns, pre_token,
            up_token, ACT, GATED, PARTS // 2,
        )  # fmt: skip
    else:
        c = column + tl.arange(0, grad.shape[1])
        inside = c < columns
        valid = (at < here)[:, None] & inside[None, :]
        p = tl.load(pre_row + at[:, None] * pre_token + c[None, :], mask=valid, other=0.0).to(tl.float32)
        gu = grad
        if GATED:
            gu = grad * tl.load(up_row + at[:, None] * up_token + c[None, :], mask=valid, other=0.0).to(tl.float32)
        value, slope = activate(p, ACT)
        dz = gu * slope
        to = at[:, None] * columns + c[None, :]
        tl.store(dpre_row + to, dz.to(dpre_row.dtype.element_ty), mask=valid)
        if GATED:
            tl.store(dup_row + to, (grad * value).to(dup_row.dtype.element_ty), mask=valid)
        tl.store(after + c, tl.sum(gu * value, 0), mask=inside)
        tl.store(before + c, tl.sum(p * dz, 0), mask=inside)


@triton.jit(do_not_specialize=COUNTS)
def gemm_dact_maskgrad_kernel(
    dy, w2, pre, up, dpre, dup, after, before, after_part, before_part, cu_seqlens, samples, tokens, columns, depth,
    slots, blocks, dy_sample, dy_token, w2_row, pre_sample, pre_token, up_sample, up_token,
    ACT: tl.constexpr, GATED: tl.constexpr, RAGGED: tl.constexpr, TOKENS: tl.constexpr, COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr, PARTS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Grid (slots * column blocks). Sums of a sample of one tile go to `after[b]` and `before[b]`, others to row
    `slot` of the parts.
    """
    pid = tl.program_id(0)
    group = pid // (GROUP * blocks)
    within = pid % (GROUP * blocks)
    size = tl.minimum(slots - group * GROUP, GROUP)
    slot = (group * GROUP + within % size).to(tl.int64)
    begin_column = (within // size) * COLUMNS
    column = begin_column + tl.arange(0, COLUMNS)
    inside = column < columns
    if RAGGED:
        zero_outside(dpre, slot, cu_seqlens, samples, tokens, columns, column, inside, TOKENS)
        if GATED:
            zero_outside(dup, slot, cu_seqlens, samples, tokens, columns, column, inside, TOKENS)
    b, first, length, begin = locate(slot, cu_seqlens, samples, tokens, RAGGED, TOKENS)
    if begin < length or begin == 0:
        here = tl.minimum(length - begin, TOKENS)
        at = tl.arange(0, TOKENS).to(tl.int64)
        inner = tl.arange(0, DEPTH)
        dy_at = dy + b * dy_sample + (first + begin) * dy_token + at[:, None] * dy_token + inner[None, :]
        w2_at = w2 + inner.to(tl.int64)[:, None] * w2_row + column[None, :]
        grad = tl.zeros((TOKENS, COLUMNS), tl.float32)
        for k in range(0, depth, DEPTH):
            live = inner < depth - k
            left = tl.load(dy_at, mask=(at < here)[:, None] & live[None, :], other=0.0)
            right = tl.load(w2_at, mask=live[:, None] & inside[None, :], other=0.0)
            grad = tl.dot(left, right, grad, input_precision="tf32x3")
            dy_at += DEPTH
            w2_at += DEPTH * tl.cast(w2_row, tl.int64)
        out = (first + begin) * columns
        if not RAGGED:
            out += b * tokens * columns
        row = after_part + slot * columns
        before_row = before_part + slot * columns
        if length <= TOKENS:
            row = after + b * columns
            before_row = before + b * columns
        _finish(
            grad, pre + b * pre_sample + (first + begin) * pre_token, up + b * up_sample + (first + begin) * up_token,
            dpre + out, dup + out, row, before_row, at, here, begin_column, columns, pre_token, up_token,
            ACT, GATED, PARTS,
        )  # fmt: skip


# By the size of an element: tokens, columns and depth of a tile, and the column parts of its epilogue. 128 x 128 would
# need a third more bytes from L2 for each FLOP; parts of 64 columns spill. fp32 takes three tf32 products, each
# with operands split in registers.
TILES = {2: (128, 256, 64, 8), 4: (64, 64, 32, 2)}


def supports(pre: Tensor, cu_seqlens: Tensor | None) -> tuple[bool, str]:
    if pre.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return False, f"no kernel for {pre.dtype}"
    slots, blocks = _grid(pre, cu_seqlens)
    if slots * blocks >= 2**31:
        return False, f"a grid for {list(pre.shape)} is too large"
    return True, ""


def _grid(pre: Tensor, cu_seqlens: Tensor | None) -> tuple[int, int]:
    tile_tokens, tile_columns, *_ = TILES[pre.element_size()]
    samples = pre.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    slots = slot_count(samples, pre.shape[-2], cu_seqlens is not None, tile_tokens)
    return slots, triton.cdiv(pre.shape[-1], tile_columns)


def gemm_dact_maskgrad(
    dy: Tensor, w2: Tensor, pre: Tensor, up: Tensor | None, act: int, cu_seqlens: Tensor | None,
    dpre: Tensor, dup: Tensor, after: Tensor, before: Tensor,
) -> None:  # fmt: skip
    """Launch: inputs with contiguous rows and something in pre, contiguous outputs; checked by
    `pyprune.ops.gemm_dact_maskgrad`.
    """
    ragged, gated = cu_seqlens is not None, up is not None
    samples, (tokens, columns) = after.shape[0], pre.shape[-2:]
    if samples == 0:
        dpre.zero_()
        dup.zero_()
        return
    tile_tokens, tile_columns, depth, parts = TILES[pre.element_size()]
    slots, blocks = _grid(pre, cu_seqlens)
    long, offsets = tokens > tile_tokens, offsets_or(cu_seqlens, after)
    sums = [after.new_empty((slots, columns)) for _ in range(2)] if long else [after, before]
    gemm_dact_maskgrad_kernel[(slots * blocks,)](
        dy, w2, pre, up if gated else pre, dpre, dup, after, before, *sums, offsets, samples, tokens, columns,
        dy.shape[-1], slots, blocks, *strides(dy, ragged), w2.stride(0), *strides(pre, ragged), *strides(up, ragged),
        ACT=act, GATED=gated, RAGGED=ragged, TOKENS=tile_tokens, COLUMNS=tile_columns, DEPTH=depth, PARTS=parts,
        GROUP=GROUP, num_warps=WARPS, num_stages=STAGES,
    )  # fmt: skip
    if long:
        for part, out in zip(sums, (after, before), strict=True):
            add_segments_kernel[(samples, triton.cdiv(columns, ADD_COLUMNS))](
                part, out, offsets, tokens, columns, RAGGED=ragged, SEGMENT=tile_tokens, COLUMNS=ADD_COLUMNS,
                num_warps=WARPS,
            )  # fmt: skip


def _spec(registers: int, shared: int, act: int, dtype: str, gated: bool, ragged: bool = False) -> dict:
    pointers = ("dy", "w2", "pre", "up", "dpre", "dup")
    sums = ("after", "before", "after_part", "before_part")
    sizes = ("samples", "tokens", "columns", "depth", "slots", "blocks")
    steps = ("dy_sample", "dy_token", "w2_row", "pre_sample", "pre_token", "up_sample", "up_token")
    tile_tokens, tile_columns, depth, parts = TILES[4 if dtype == "fp32" else 2]
    name = f"{('silu', 'gelu', 'gelu_tanh', 'relu')[act]}{'-gated' if gated else ''}-{dtype}"
    return {
        "name": f"gemm_dact_maskgrad-{name}{'-ragged' if ragged else ''}",
        "kernel": gemm_dact_maskgrad_kernel,
        "signature": dict.fromkeys(pointers, f"*{dtype}")
        | dict.fromkeys(sums, "*fp32")
        | {"cu_seqlens": "*i32" if ragged else "*fp32"}
        | dict.fromkeys(sizes, "i32")
        | dict.fromkeys(steps, "i64"),
        "constexprs": {"ACT": act, "GATED": gated, "RAGGED": ragged, "TOKENS": tile_tokens, "COLUMNS": tile_columns}
        | {"DEPTH": depth, "PARTS": parts, "GROUP": GROUP},
        "divisible": (*pointers, *sums, "columns", "depth", *steps),
        "options": {"num_warps": WARPS, "num_stages": STAGES},
        "max_registers": registers,
        "max_shared": shared,
        "instructions": ("LDG.E.128", "STG.E.128"),
        "tensor_cores": True,
    }


# The stages of dy and w2 take the shared memory.
AOT = [
    _spec(246, 147472, 0, "bf16", True),
    _spec(238, 147472, 0, "bf16", True, ragged=True),
    _spec(246, 147472, 1, "bf16", False),
    _spec(247, 147472, 1, "bf16", True, ragged=True),
    _spec(255, 147472, 2, "fp16", True),
    _spec(244, 147472, 3, "bf16", True),
    _spec(168, 49160, 0, "fp32", True),
    _spec(168, 49160, 1, "fp32", False, ragged=True),
]
