"""How the tokens of a batch are cut into segments: the unit of work of every per-sample reduction.

A sample is cut every SEGMENT tokens whatever the batch and the grid. One program reduces one segment, a second kernel
adds the partial sums in order: results are deterministic and a sample's bits do not depend on its neighbours.
"""

import triton
import triton.language as tl
from pyprune.triton_kernels import COUNTS
from torch import Tensor

# As in csrc/common/segments.h: the workspace of a sample that begins at token s has its first slot at s // SEGMENT + b,
# which needs neither a prefix sum over the lengths nor a look at them from the host.
SEGMENT = 512


def slot_count(samples: int, tokens: int, ragged: bool, segment: int = SEGMENT) -> int:
    """Rows of the workspace, one program each in a column block. `tokens` are a sample's, or a ragged batch's."""
    return tokens // segment + samples if ragged else samples * max(triton.cdiv(tokens, segment), 1)


def offsets_or(cu_seqlens: Tensor | None, anything: Tensor) -> Tensor:
    """A kernel needs some pointer where a dense batch has no offsets; it is not read."""
    return anything if cu_seqlens is None else cu_seqlens


@triton.jit
def locate(slot, cu_seqlens, samples, tokens, RAGGED: tl.constexpr, SEGMENT: tl.constexpr):
    """(sample, its first token within the row pointer, its length, where the slot's segment begins), all int64.

    A ragged batch has more slots than segments: a slot is used if it begins inside the sample, or at 0, where an empty
    sample's zeros are written.
    """
    if RAGGED:
        low = tl.zeros((), tl.int32)
        high = samples - 1
        while low < high:  # the last sample whose first slot is not above this one
            middle = (low + high + 1) // 2
            if tl.load(cu_seqlens + middle).to(tl.int64) // SEGMENT + middle <= slot:
                low = middle
            else:
                high = middle - 1
        b = low.to(tl.int64)
        first = tl.load(cu_seqlens + b).to(tl.int64)
        length = tl.load(cu_seqlens + b + 1).to(tl.int64) - first
        segment = slot - (first // SEGMENT + b)
    else:
        per_sample = tl.maximum((tokens + SEGMENT - 1) // SEGMENT, 1)
        b = slot // per_sample
        segment = slot % per_sample
        first = segment * 0
        length = first + tokens
    return b, first, length, segment * SEGMENT


@triton.jit(do_not_specialize=COUNTS)
def add_segments_kernel(
    partial, out, cu_seqlens, tokens, columns,
    RAGGED: tl.constexpr, SEGMENT: tl.constexpr, COLUMNS: tl.constexpr, samples=0, slots=0,
):  # fmt: skip
    """Grid (samples, column blocks, planes). Adds the partial sums of samples with more than one segment, in order.

    A plane is one `partial` `[slots, columns]` and its `out` `[samples, columns]`; `samples` and `slots` matter to
    the planes behind the first.
    """
    b = tl.program_id(0).to(tl.int64)
    plane = tl.program_id(2).to(tl.int64)
    partial += plane * slots * columns
    out += plane * samples * columns
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
        acc = tl.zeros((COLUMNS,), tl.float32)
        for s in range(0, (length + SEGMENT - 1) // SEGMENT):
            acc += tl.load(partial + (slot + s) * columns + column, mask=inside, other=0.0)
        tl.store(out + b * columns + column, acc, mask=inside)
