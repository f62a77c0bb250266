"""linear_cross_entropy in Triton: rows of logits become rows of their loss's gradient; the products are the library's.

One program owns a row and reads it twice, every lane with its own running maximum and sum. Few rows need no splitting:
one program takes about 20 us for 128 k words at 50 GB/s, while the product before it reads the whole weight.
"""

import triton
import triton.language as tl
from torch import Tensor

COLUMNS, WARPS = 2048, 8

DOT = False  # whether tl.dot is used, which Triton's interpreter gets wrong in bfloat16

LABELS, SAMPLED, MAX_LOGIT, KL, PROBE = (tl.constexpr(i) for i in range(5))
TARGETS = ("labels", "sampled", "max_logit", "kl", "probe")
IGNORED = tl.constexpr(-100)
# What the rows of all buffers are padded to, in elements.
PAD = tl.constexpr(64)
# Finite, because -inf minus -inf is NaN.
LOWEST = tl.constexpr(-3.0e38)


@triton.jit
def noise(column, low, high):
    """32 bits: the same steps as in csrc/cpu/linear_cross_entropy.cpp, which tells why."""
    h = column.to(tl.uint32) ^ low
    h = (h ^ (h >> 16)) * 0x21F0AAAD
    h = (h ^ (h >> 15)) + high
    h = h * 0x735A2D97
    h = (h ^ (h >> 15)) * 0x31848BAB
    return h ^ (h >> 16)


@triton.jit
def halves(key):
    return key.to(tl.uint32), (key >> 32).to(tl.uint32)


@triton.jit
def gumbel(h):
    """-log E with E exponentially distributed, both ends of it with their relative precision."""
    bits = (h >> 1).to(tl.int32)
    u = (bits.to(tl.float32) + 0.5) * 4.656612873077393e-10
    rest = ((bits ^ 0x7FFFFFFF).to(tl.float32) + 0.5) * 4.656612873077393e-10
    series = u + u * u * (0.5 + u * 0.3333333333333333)
    return -tl.log(tl.where(u < 0.015625, series, -tl.log(rest)))


@triton.jit
def sign(h):
    return tl.where(h >> 31 == 0, 1.0, -1.0)


@triton.jit
def load_logits(row, bias, column, columns, padded, inverse_temperature, BIAS: tl.constexpr):
    """-inf behind the last column. Rows and bias reach to `padded`, a multiple of PAD: loads of 128 bits stay whole."""
    z = tl.load(row + column, mask=column < padded, other=0.0)
    if BIAS:
        z += tl.load(bias + column, mask=column < padded, other=0.0)
    return tl.where(column < columns, z * inverse_temperature, float("-inf"))


@triton.jit
def merge(top, total):
    """(largest, sum of exp relative to it) of lanes with maxima `top` and sums `total` relative to those."""
    largest = tl.max(top)
    return largest, tl.sum(total * tl.exp(top - largest))


@triton.jit
def cross_entropy_rows_kernel(
    logits, gradient, bias, teacher, teacher_bias, keys, loss, picked,
    columns, logits_row, gradient_row, teacher_row, inverse_temperature, scale,
    TARGET: tl.constexpr, BIAS: tl.constexpr, TEACHER_BIAS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Grid (rows). `gradient` may be `logits`: a lane writes what it alone has read, after all first readings."""
    i = tl.program_id(0).to(tl.int64)
    z_row, g_row, t_row = logits + i * logits_row, gradient + i * gradient_row, teacher + i * teacher_row
    padded = tl.cdiv(columns, PAD) * PAD
    lane = tl.arange(0, COLUMNS)
    top = tl.full((COLUMNS,), LOWEST, tl.float32)
    total = tl.zeros((COLUMNS,), tl.float32)
    if TARGET == KL:
        t_top, t_total = top, total
    if TARGET == PROBE:
        along = total
        low, high = halves(tl.load(keys + i))
    if TARGET == SAMPLED:
        best, best_noise = tl.full((COLUMNS,), float("-inf"), tl.float32), total
        low, high = halves(tl.load(keys + i))
    at = lane * 0
    terms = total
    if TARGET == LABELS:
        label = tl.load(picked + i)
        inside = (label >= 0) & (label < columns)
        pick = tl.where(inside, label, -1).to(tl.int32)
        # A label that is no word makes the loss NaN, unless it says that the row is ignored.
        z_pick = tl.load(z_row + pick, mask=inside, other=float("nan"))
        if BIAS:
            z_pick += tl.load(bias + pick, mask=inside, other=0.0)

    for first in range(0, columns, COLUMNS):
        column = first + lane
        z = load_logits(z_row, bias, column, columns, padded, inverse_temperature, BIAS)
        if TARGET == MAX_LOGIT:
            at = tl.where(z > top, column, at)
            top = tl.maximum(top, z)
        else:
            new = tl.maximum(top, z)
            down = tl.exp(top - new)
            total = total * down + tl.exp(z - new)
            if TARGET == SAMPLED:
                # Compared by differences: a logit of 1e4 plus the noise would lose ten bits of it.
                g = gumbel(noise(column, low, high))
                better = z - best > best_noise - g
                at = tl.where(better, column, at)
                best, best_noise = tl.where(better, z, best), tl.where(better, g, best_noise)
            if TARGET == PROBE:
                along = along * tl.sqrt(down) + tl.exp((z - new) * 0.5) * sign(noise(column, low, high))
            if TARGET == KL:
                t = load_logits(t_row, teacher_bias, column, columns, padded, inverse_temperature, TEACHER_BIAS)
                t_new = tl.maximum(t_top, t)
                t_total = t_total * tl.exp(t_top - t_new) + tl.exp(t - t_new)
                t_top = t_new
            top = new

    if TARGET == MAX_LOGIT:
        value = tl.max(top)
        tl.store(picked + i, tl.min(tl.where(top == value, at, columns - 1)).to(tl.int64))
        tl.store(loss + i, value)
    else:
        if TARGET == PROBE:
            along = tl.sum(along * tl.exp((top - tl.max(top)) * 0.5))
        z_top, z_sum = merge(top, total)
        p_factor = 1.0 / z_sum
        if TARGET == SAMPLED:
            score = best - z_top + best_noise
            pick = tl.min(tl.where(score == tl.max(score), at, columns - 1))
            z_pick = tl.max(tl.where(at == pick, best, float("-inf")))
            tl.store(picked + i, pick.to(tl.int64))
        if TARGET == KL:
            t_largest, t_sum = merge(t_top, t_total)
            t_factor = 1.0 / t_sum
        if TARGET == PROBE:
            root_factor = tl.sqrt(p_factor)
            along *= root_factor
        if TARGET == LABELS:
            scale = tl.where(label == IGNORED, 0.0, scale)

        for first in range(0, columns, COLUMNS):
            column = first + lane
            z = load_logits(z_row, bias, column, columns, padded, inverse_temperature, BIAS) - z_top
            p = tl.exp(z) * p_factor
            if TARGET == KL:
                t = (
                    load_logits(t_row, teacher_bias, column, columns, padded, inverse_temperature, TEACHER_BIAS)
                    - t_largest
                )
                q = tl.exp(t) * t_factor
                # A word that both models mask has logits of -inf, whose difference is NaN.
                terms += tl.where(q == 0.0, 0.0, q * (t - z))
                p -= q
            elif TARGET == PROBE:
                p = tl.exp(z * 0.5) * root_factor * sign(noise(column, low, high)) - p * along
                terms += tl.where(z < -170.0, 0.0, p * z)
            else:
                p = tl.where(column == pick, p - 1.0, p)
            tl.store(g_row + column, (p * scale).to(gradient.dtype.element_ty), mask=column < padded)

        if TARGET == KL:
            temperature = 1.0 / inverse_temperature
            tl.store(loss + i, temperature * temperature * (tl.sum(terms) + tl.log(z_sum) - tl.log(t_sum)))
        elif TARGET == PROBE:
            tl.store(loss + i, tl.sum(terms))
        else:
            value = tl.log(z_sum) + (z_top - z_pick)
            if TARGET == LABELS:
                value = tl.where(label == IGNORED, 0.0, value)
            tl.store(loss + i, value)


def cross_entropy_rows_(
    logits: Tensor, gradient: Tensor, bias: Tensor | None, teacher: Tensor | None, teacher_bias: Tensor | None,
    keys: Tensor | None, target: str, temperature: float, scale: float, loss: Tensor, picked: Tensor,
) -> None:  # fmt: skip
    """Launch on what `_run` of the op has made: all fp32 but gradient, keys and picked, which holds the labels."""
    given = lambda t: logits if t is None else t  # noqa: E731
    cross_entropy_rows_kernel[(logits.shape[0],)](
        logits, gradient, given(bias), given(teacher), given(teacher_bias), given(keys),
        loss, picked, logits.shape[1], logits.stride(0), gradient.stride(0), given(teacher).stride(0),
        1.0 / temperature, scale * temperature, TARGET=TARGETS.index(target), BIAS=bias is not None,
        TEACHER_BIAS=teacher_bias is not None, COLUMNS=COLUMNS, num_warps=WARPS,
    )  # fmt: skip


def _spec(target: str, dtype: str, bias: bool, max_registers: int) -> dict:
    strides = ("logits_row", "gradient_row", "teacher_row")
    return {
        "name": f"cross_entropy_rows-{target}-{dtype}{'-bias' if bias else ''}",
        "kernel": cross_entropy_rows_kernel,
        "signature": {
            "logits": "*fp32",
            "gradient": f"*{dtype}",
            "bias": "*fp32",
            "teacher": "*fp32",
            "teacher_bias": "*fp32",
            "keys": "*i64",
            "loss": "*fp32",
            "picked": "*i64",
            "columns": "i32",
            **dict.fromkeys(strides, "i64"),
            "inverse_temperature": "fp32",
            "scale": "fp32",
        },
        "constexprs": {"TARGET": TARGETS.index(target), "BIAS": bias, "TEACHER_BIAS": bias, "COLUMNS": COLUMNS},
        "divisible": ("logits", "gradient", "bias", "teacher", "teacher_bias", *strides),
        "options": {"num_warps": WARPS},
        "max_registers": max_registers,
        "max_shared": 32,
        "instructions": ("LDG.E.128", *(() if target == "max_logit" else ("STG.E.128",))),
    }


AOT = [
    _spec("labels", "bf16", False, 48),
    _spec("labels", "fp16", True, 48),
    _spec("labels", "fp32", False, 48),
    _spec("sampled", "bf16", False, 80),
    _spec("sampled", "fp32", True, 100),
    _spec("max_logit", "bf16", True, 48),
    _spec("kl", "bf16", True, 80),
    _spec("kl", "fp32", False, 64),
    _spec("probe", "bf16", False, 48),
    _spec("probe", "fp32", True, 64),
]
