"""wgrad_group_scores in Triton: a tile of every sample's weight gradient lives and dies in registers."""

import torch
import triton
import triton.language as tl
from pyprune.triton_kernels import COUNTS
from torch import Tensor

# Gradient, squares and, for "mix", their total take 64 registers a thread each on 128 x 128 and 8 warps: two of them
# fit, a third spills, so that "mix" has half the columns.
TILE, TILE_MIX, DEPTH, WARPS, STAGES = 128, 64, 64, 8, 3
# fp32 operands take three tf32 products each for fp32 accuracy: smaller tiles keep the split operands in registers.
TILE_FP32, DEPTH_FP32 = 64, 32

DOT = True  # whether tl.dot is used, which Triton's interpreter gets wrong in bfloat16


@triton.jit(do_not_specialize=COUNTS)
def wgrad_group_scores_kernel(
    dy, x, w, row_partials, column_partials, cu_seqlens, samples, tokens, p, d, span, splits,
    dy_sample, dy_token, x_sample, x_token, w_row,
    RAGGED: tl.constexpr, SQUARES: tl.constexpr, TOTAL: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Grid (row tiles, column tiles, splits of the samples). Row partials `[column tiles * splits, p]`, column partials
    `[row tiles * splits, d]`. A "sample" is `span` samples of a ragged batch.
    """
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    j = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    row_in, column_in = i < p, j < d
    k = tl.arange(0, DEPTH)
    share = tl.cdiv(samples, splits)
    split = tl.program_id(2)
    begin = split.to(tl.int64) * share
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    squares = tl.zeros((ROWS, COLUMNS), tl.float32)
    # One loop over all samples' tokens keeps loads in flight from one sample to the next.
    for b in tl.range(begin, tl.minimum(begin + share, samples), flatten=True):
        if RAGGED:
            first = tl.load(cu_seqlens + b * span).to(tl.int32)
            last = tl.load(cu_seqlens + b * span + span).to(tl.int32)
            left, right = dy, x
        else:
            first, last = 0, tokens
            left, right = dy + b * dy_sample, x + b * x_sample
        # Without squares the sum goes on through all samples: one accumulator.
        gradient = tl.zeros((ROWS, COLUMNS), tl.float32) if SQUARES else total
        for t in range(first, last, DEPTH):
            live = (t + k < last)[:, None]
            at = (t + k).to(tl.int64)[:, None]
            a = tl.load(left + at * dy_token + i[None, :], mask=live & row_in[None, :], other=0.0)
            c = tl.load(right + at * x_token + j[None, :], mask=live & column_in[None, :], other=0.0)
            gradient = tl.dot(tl.trans(a), c, gradient, input_precision="tf32x3")
        if SQUARES:
            squares += gradient * gradient
            if TOTAL:
                total += gradient
        else:
            total = gradient
    inside = row_in[:, None] & column_in[None, :]
    weight = tl.load(w + i.to(tl.int64)[:, None] * w_row + j[None, :], mask=inside, other=0.0).to(tl.float32)
    if SQUARES and TOTAL:
        score = tl.abs(weight * total - 0.5 * weight * weight * squares)
    elif SQUARES:
        score = weight * weight * squares
    else:
        score = tl.abs(weight * total)
    # An infinite gradient times the zero of a masked weight is NaN.
    score = tl.where(inside, score, 0.0)
    row_partials += (tl.program_id(1).to(tl.int64) * splits + split) * p
    column_partials += (tl.program_id(0).to(tl.int64) * splits + split) * d
    tl.store(row_partials + i, tl.sum(score, 1), mask=row_in)
    tl.store(column_partials + j, tl.sum(score, 0), mask=column_in)


def supports(dy: Tensor, x: Tensor, w: Tensor, cu_seqlens: Tensor | None, mode: str) -> tuple[bool, str]:
    if w.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return False, f"no kernel for {w.dtype}"
    # Tokens are counted in 32 bits, tiles and splits in a grid's.
    if dy.shape[0] >= 2**31 - DEPTH or dy.shape[-2] >= 2**31 - DEPTH or w.shape[1] > 65535 * TILE_FP32:
        return False, f"a grid for {list(dy.shape)} and {list(w.shape)} is too large"
    return True, ""


def tiling(dtype: torch.dtype, mode: str) -> tuple[int, int, int]:
    if dtype == torch.float32:
        return TILE_FP32, TILE_FP32, DEPTH_FP32
    return TILE, TILE_MIX if mode == "mix" else TILE, DEPTH


def split_count(tiles: int, samples: int, processors: int) -> int:
    """Into how many parts the samples are split so that the last wave of tiles is full: 144 tiles for 132
    multiprocessors are two waves, 11 parts of them twelve waves of a twelfth of the work. A part's reading of the
    weight and its sums take about as long as half a sample.
    """

    def cost(splits: int) -> float:
        return triton.cdiv(tiles * splits, processors) * (triton.cdiv(samples, splits) + 0.5)

    return min(range(1, min(samples, 16) + 1), key=cost)


def wgrad_group_scores(
    dy: Tensor, x: Tensor, w: Tensor, cu_seqlens: Tensor | None, mode: str, rows: Tensor, columns: Tensor
) -> None:
    """Launch: three tensors with contiguous rows and something in them, checked by `pyprune.ops.wgrad_group_scores`."""
    p, d = w.shape
    ragged, span = cu_seqlens is not None, 1
    samples, tokens = (cu_seqlens.shape[0] - 1, dy.shape[0]) if ragged else dy.shape[:2]
    strides = [s for t in (dy, x) for s in ((0, t.stride(0)) if ragged else t.stride()[:2])]
    if mode == "abs":
        # One sum over all tokens, whatever their samples; a dense batch's rows must go on at the same distance.
        if ragged:
            samples, span = 1, samples
        elif all(t.stride(0) == tokens * t.stride(1) for t in (dy, x)) and samples * tokens < 2**31 - DEPTH:
            samples, tokens = 1, samples * tokens
    tile_rows, tile_columns, depth = tiling(w.dtype, mode)
    down, across = triton.cdiv(p, tile_rows), triton.cdiv(d, tile_columns)
    # Sums of squares over parts of the samples add up; an absolute value of sums is not the sum of theirs.
    splits = split_count(down * across, samples, processors(w.device)) if mode == "sq" else 1
    row_partials = w.new_empty((across * splits, p), dtype=torch.float32)
    column_partials = w.new_empty((down * splits, d), dtype=torch.float32)
    wgrad_group_scores_kernel[(down, across, splits)](
        dy, x, w, row_partials, column_partials, dy if cu_seqlens is None else cu_seqlens, samples, tokens, p, d,
        span, splits, *strides, w.stride(0),
        RAGGED=ragged, SQUARES=mode != "abs", TOTAL=mode != "sq",
        ROWS=tile_rows, COLUMNS=tile_columns, DEPTH=depth, num_warps=WARPS, num_stages=STAGES,
    )  # fmt: skip
    torch.sum(row_partials, 0, out=rows)
    torch.sum(column_partials, 0, out=columns)


def processors(device: torch.device) -> int:
    """Multiprocessors; the interpreter, which has none, splits as on an H100."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132


def _spec(dtype: str, mode: str, ragged: bool, max_registers: int) -> dict:
    rows, columns, depth = tiling(torch.float32 if dtype == "fp32" else torch.bfloat16, mode)
    pointers = ("dy", "x", "w", "row_partials", "column_partials")
    strides = ("dy_sample", "dy_token", "x_sample", "x_token", "w_row")
    return {
        "name": f"wgrad_group_scores-{dtype}-{mode}-{'ragged' if ragged else 'dense'}",
        "kernel": wgrad_group_scores_kernel,
        "signature": {
            **dict.fromkeys(pointers[:3], f"*{dtype}"),
            **dict.fromkeys(pointers[3:], "*fp32"),
            "cu_seqlens": "*i32" if ragged else f"*{dtype}",
            **dict.fromkeys(("samples", "tokens", "p", "d", "span", "splits"), "i32"),
            **dict.fromkeys(strides, "i64"),
        },
        "constexprs": {
            "RAGGED": ragged,
            "SQUARES": mode != "abs",
            "TOTAL": mode != "sq",
            "ROWS": rows,
            "COLUMNS": columns,
            "DEPTH": depth,
        },
        "divisible": (*pointers, *strides, "p", "d"),
        "options": {"num_warps": WARPS, "num_stages": STAGES},
        "max_registers": max_registers,
        "max_shared": 98320,
        "instructions": ("LDG.E.128", "LDGSTS.E.BYPASS.128"),
        "tensor_cores": True,
    }


# The registers are those of sm_80; in this order sm_90 takes 198, 178, 126, 150, 198, 166, 180.
AOT = [
    _spec("bf16", "sq", ragged=False, max_registers=244),
    _spec("bf16", "sq", ragged=True, max_registers=244),
    _spec("bf16", "abs", ragged=False, max_registers=170),
    _spec("bf16", "mix", ragged=True, max_registers=216),
    _spec("fp16", "sq", ragged=False, max_registers=244),
    _spec("fp32", "sq", ragged=False, max_registers=203),
    _spec("fp32", "mix", ragged=True, max_registers=237),
]
