"""channel_stats: mean, sum of squared deviations and sum of absolute values of every channel over a sample's tokens.

What activation-statistics scores are made of: FLAP's variance and bias compensation (An et al. 2023), Wanda's column
norms (Sun et al. 2023: ||x||^2 = M2 + n mean^2), Minitron's mean |x| per sample (Muralidharan et al. 2024).
"""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor, library

from pyprune.core.errors import InputError
from pyprune.ops import _native
from pyprune.ops._dispatch import Candidate, Op, Support, detached, triton_missing
from pyprune.ops._offsets import check_offset_values, check_offsets

SCHEMA = "(Tensor x, Tensor? cu_seqlens=None, Tensor? token_mask=None) -> (Tensor mean, Tensor m2, Tensor l1)"
KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def channel_stats(
    x: Tensor, cu_seqlens: Tensor | None = None, token_mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Per sample and channel: mean, M2 = sum of (x - mean)^2 and sum of |x| over the sample's tokens, in fp32.

    x: `[B, T, N]`, or `[N_tok, N]` with cu_seqlens; float32, bfloat16, float16 or float64 (torch backend only). Any
        strides; a last dimension that is not contiguous is copied.
    cu_seqlens: `[B + 1]` int32 or int64, non-decreasing: sample b owns tokens cu_seqlens[b] to cu_seqlens[b + 1].
        Tokens before the first and after the last offset are not read. On CUDA the values are not checked (no host
        sync).
    token_mask: `[B, T]` bool, for dense x only: True is a real token, False one that is not read and may hold NaN.

    Returns (mean, m2, l1), each float32 `[B, N]` (float64 for float64); all 0 for a sample with no token. The variance
    is `m2 / n`, the squared norm `m2 + n * mean**2`; `core.statistics.ChannelTotals` adds up samples. Means far from
    zero cost no digits: the deviations are taken from a value among the data (Chan, Golub and LeVeque 1983). The C++
    and Triton backends are deterministic, and a sample's bits do not depend on the rest of the batch. Not
    differentiable.

    Raises: InputError for shapes, dtypes or offsets that do not fit; BackendError, see `pyprune.ops.backend`.

    >>> mean, m2, l1 = channel_stats(torch.tensor([[[1.0, -2.0], [3.0, -2.0]]]))
    >>> mean, m2, l1
    (tensor([[ 2., -2.]]), tensor([[2., 0.]]), tensor([[4., 4.]]))
    """
    return torch.ops.pyprune.channel_stats.default(*detached(x, cu_seqlens, token_mask))


def check(x: Tensor, cu_seqlens: Tensor | None, token_mask: Tensor | None) -> None:
    """Everything that can be told without reading data; shared by the op and its fake."""
    if x.dim() != (3 if cu_seqlens is None else 2):
        expected = "[B, T, N]" if cu_seqlens is None else "[N_tok, N] with cu_seqlens"
        raise InputError(f"channel_stats: x must be {expected}, got {list(x.shape)}")
    if x.dtype not in (*KERNEL_DTYPES, torch.float64):
        raise InputError(f"channel_stats: x must be float32, bfloat16, float16 or float64, got {x.dtype}")
    if any(t is not None and t.device != x.device for t in (cu_seqlens, token_mask)):
        raise InputError("channel_stats: x, cu_seqlens and token_mask must be on one device")
    if cu_seqlens is not None and token_mask is not None:
        raise InputError("channel_stats: cu_seqlens and token_mask exclude each other: drop one")
    check_offsets("channel_stats", cu_seqlens)
    if token_mask is not None and (token_mask.dtype != torch.bool or token_mask.shape != x.shape[:2]):
        raise InputError(
            f"channel_stats: token_mask must be bool {list(x.shape[:2])}, got {token_mask.dtype} "
            f"{list(token_mask.shape)}"
        )


def check_values(x: Tensor, cu_seqlens: Tensor | None, token_mask: Tensor | None) -> None:
    check(x, cu_seqlens, token_mask)
    check_offset_values("channel_stats", cu_seqlens, x.shape[0])


def reference(
    x: Tensor, cu_seqlens: Tensor | None = None, token_mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The definition in torch, in two passes; exact to float64 for float64 inputs."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    if cu_seqlens is not None:
        samples = [x[s:e] for s, e in pairwise(cu_seqlens.tolist())]
    elif token_mask is not None:
        samples = [rows[real] for rows, real in zip(x, token_mask, strict=True)]
    else:
        samples = list(x)
    out = fake(x, cu_seqlens, token_mask)
    for b, rows in enumerate(samples):
        rows = rows.to(wide)
        mean = rows.sum(0) / max(len(rows), 1)
        for result, value in zip(out, (mean, ((rows - mean) ** 2).sum(0), rows.abs().sum(0)), strict=True):
            result[b] = value
    return out


def _prepared(run):
    """What every kernel needs: contiguous rows, offsets and mask, something to read."""

    def call(x, cu_seqlens, token_mask):
        if x.numel() == 0:
            return tuple(out.zero_() for out in fake(x, cu_seqlens, token_mask))
        x = x if x.stride(-1) == 1 else x.contiguous()
        return run(x, *(None if t is None else t.contiguous() for t in (cu_seqlens, token_mask)))

    return call


def _run_cpp(*args):
    outs = fake(*args)
    _native.op("cpp", "channel_stats")(*args, *outs)
    return outs


def _run_triton(*args):
    from pyprune.triton_kernels.channel_stats import channel_stats as launch

    return launch(*args, *fake(*args))


def _supports(x, cu_seqlens, token_mask) -> Support:
    if x.dtype not in KERNEL_DTYPES:
        return False, f"no kernel for {x.dtype}"
    return True, ""


def _supports_triton(*args) -> Support:
    from pyprune.triton_kernels.channel_stats import supports

    return supports(*args)


def fake(x, cu_seqlens=None, token_mask=None):
    check(x, cu_seqlens, token_mask)
    samples = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return tuple(x.new_empty((samples, x.shape[-1]), dtype=dtype) for _ in range(3))


def samples() -> Iterator[tuple]:
    generator = torch.Generator().manual_seed(0)
    make = lambda *shape, dtype=torch.float32: torch.randn(*shape, generator=generator).to(dtype)  # noqa: E731
    for shape in ((2, 5, 12), (1, 37, 100), (3, 1, 24), (2, 0, 3)):
        for dtype in KERNEL_DTYPES:
            yield make(*shape, dtype=dtype), None, None
    for offsets in (torch.tensor([0, 3, 3, 9]), torch.tensor([1, 4, 8], dtype=torch.int32)):
        yield make(10, 12), offsets, None
    yield make(3, 7, 20), None, torch.tensor([[True] * 7, [False] * 7, [False, True, True, False, True, False, False]])


def bytes_moved(x: Tensor, cu_seqlens: Tensor | None = None, token_mask: Tensor | None = None) -> int:
    samples = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    read = x.numel() * x.element_size() + (0 if token_mask is None else token_mask.numel())
    return read + 3 * 4 * samples * x.shape[-1]


def flops(x: Tensor, *_) -> int:
    """A subtraction, two additions and a multiply-add for every value; |x| is free."""
    return 5 * x.numel()


OP = Op(
    name="channel_stats",
    schema=SCHEMA,
    candidates=(
        Candidate("triton", ("cuda",), _prepared(_run_triton), triton_missing, _supports_triton),
        Candidate("cpp", ("cpu",), _prepared(_run_cpp), lambda: _native.missing("cpp"), _supports),
        Candidate("torch", ("cpu", "cuda"), reference),
    ),
    check=check_values,
    samples=samples,
    bytes_moved=bytes_moved,
    flops=flops,
)
library.register_fake("pyprune::channel_stats", fake)
