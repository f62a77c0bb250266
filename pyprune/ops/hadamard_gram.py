"""hadamard_gram: the normal equations of mask tuning without the design matrix.

Kwon et al. 2022, §4.3: scale the kept units so that a pruned block's output fits the residual of the unpruned one.
Column j of the least-squares matrix is what unit j adds to the output, `A_j = vec(sum over channels c of j of h[:, c]
(outer) w[c, :])`.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, library

from pyprune.core.errors import InputError
from pyprune.ops import _native
from pyprune.ops._dispatch import Candidate, Op, Support, detached, triton_missing

SCHEMA = "(Tensor h, Tensor w, Tensor? target=None, int group=1) -> (Tensor ata, Tensor atb)"
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# Channels of a tile on the CPU. Tiles on the diagonal are computed whole: 256 do 54 % of the full product at n = 3072,
# 512 do 58 %, and smaller ones make the products less efficient.
BAND = 256


def hadamard_gram(h: Tensor, w: Tensor, target: Tensor | None = None, group: int = 1) -> tuple[Tensor, Tensor]:
    """A^T A and A^T target for the units' contributions A, in fp32.

    h: `[N_tok, n * group]`, the input of the output projection (activations, or the context of heads of `group`
    channels).
    w: `[n * group, d]`, the projection's rows for those channels (the transpose of a `nn.Linear` weight).
    target: `[N_tok, d]`, the residual to explain, or None. All share a device and one of float32, bfloat16, float16,
    float64.

    Returns (ata, atb): float32 `[n, n]` (symmetric) and `[n]`, float64 for float64 inputs; atb is zero without a
    target.
    `ata[j, k]` sums `(h^T h) * (w w^T)` over the block of units j and k, `atb[j]` sums `(h^T target) * w` over j's
    rows.
    Both are sums over tokens: add those of several batches. Not differentiable.

    Raises: InputError for shapes or dtypes that do not fit.

    >>> ata, atb = hadamard_gram(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [1.0]]), torch.tensor([[2.0]]))
    >>> ata
    tensor([[9., 6.],
            [6., 4.]])
    >>> atb
    tensor([6., 4.])
    """
    return torch.ops.pyprune.hadamard_gram.default(*detached(h, w, target, group))


def check(h: Tensor, w: Tensor, target: Tensor | None, group: int) -> None:
    if h.dim() != 2 or w.dim() != 2 or h.shape[1] != w.shape[0]:
        raise InputError(
            f"hadamard_gram: h must be [tokens, channels] and w [channels, d], got {list(h.shape)} and {list(w.shape)}"
        )
    if target is not None and target.shape != (h.shape[0], w.shape[1]):
        raise InputError(f"hadamard_gram: target must be {[h.shape[0], w.shape[1]]}, got {list(target.shape)}")
    given = [t for t in (h, w, target) if t is not None]
    if h.dtype not in DTYPES or any(t.dtype != h.dtype or t.device != h.device for t in given):
        raise InputError(f"hadamard_gram: one floating dtype and device, got {[(t.dtype, t.device) for t in given]}")
    if group < 1 or h.shape[1] % group != 0:
        raise InputError(f"hadamard_gram: {h.shape[1]} channels are no multiple of group {group}")


def accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def reference(h: Tensor, w: Tensor, target: Tensor | None, group: int) -> tuple[Tensor, Tensor]:
    """The definition in torch; exact to float64 for float64 inputs."""
    wide = accumulator(h.dtype)
    h, w = h.to(wide), w.to(wide)
    units = h.shape[1] // group
    blocks = ((h.T @ h) * (w @ w.T)).unflatten(0, (units, group)).unflatten(2, (units, group))
    return symmetric(blocks.sum((1, 3))), project(h, w, target, group)


def symmetric(square: Tensor) -> Tensor:
    """The upper triangle, mirrored: the sums of two mirrored blocks run in different orders and differ in the last
    bit.
    """
    return square.triu() + square.triu(1).T


def project(h: Tensor, w: Tensor, target: Tensor | None, group: int) -> Tensor:
    """atb. h^T target is `[channels, d]` whatever the number of tokens, where target w^T would grow with them."""
    if target is None:
        return h.new_zeros(h.shape[1] // group)
    per_channel = ((h.T @ target.to(h.dtype)) * w).sum(1)
    return per_channel.unflatten(0, (-1, group)).sum(1)


def run_cpp(h: Tensor, w: Tensor, target: Tensor | None, group: int) -> tuple[Tensor, Tensor]:
    # Widened first: a bfloat16 product would round its fp32 accumulators, and every batch would add that error.
    wide = _bands(h, group), w.float().contiguous(), None if target is None else target.float()
    outputs = fake(h, w, target, group)
    _native.op("cpp", "hadamard_gram")(*wide, group, *outputs)
    return outputs


def _bands(h: Tensor, group: int) -> Tensor:
    """h in fp32 as `[bands, tokens, width]`, each band for itself in memory: products of columns that lie far apart are
    8 % slower. The last band may end early; what stands behind its columns is not initialised.
    """
    tokens, channels = h.shape
    width = max(1, BAND // group) * group
    if channels <= width:
        return h.float()[None]
    bands = h.new_empty((-(-channels // width), tokens, width), dtype=torch.float32)
    for band, columns in zip(bands, h.split(width, 1), strict=True):
        band[:, : columns.shape[1]].copy_(columns)
    return bands


def supports_cpp(h: Tensor, w: Tensor, target: Tensor | None, group: int) -> Support:
    if h.dtype == torch.float64:
        return False, "no kernel for torch.float64"
    return True, ""


def run_triton(*args):
    from pyprune.triton_kernels.hadamard_gram import hadamard_gram as launch

    return launch(*args)


def supports_triton(*args) -> Support:
    from pyprune.triton_kernels.hadamard_gram import supports

    return supports(*args)


def fake(h: Tensor, w: Tensor, target: Tensor | None = None, group: int = 1) -> tuple[Tensor, Tensor]:
    check(h, w, target, group)
    units, dtype = h.shape[1] // group, accumulator(h.dtype)
    return h.new_empty((units, units), dtype=dtype), h.new_empty((units,), dtype=dtype)


def samples() -> Iterator[tuple]:
    generator = torch.Generator().manual_seed(0)
    make = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    for tokens, units, group, d in ((5, 6, 1, 4), (37, 3, 8, 20), (1, 100, 1, 3), (20, 2, 16, 16)):
        for dtype in DTYPES:
            h, w, target = make(tokens, units * group), make(units * group, d), make(tokens, d)
            yield h.to(dtype), w.to(dtype), target.to(dtype), group
    yield make(5, 6), make(6, 4), None, 2


def bytes_moved(h: Tensor, w: Tensor, target: Tensor | None = None, group: int = 1) -> int:
    units = h.shape[1] // group
    read = sum(t.numel() * t.element_size() for t in (h, w, target) if t is not None)
    return read + 4 * units * (units + 1)


def flops(h: Tensor, w: Tensor, target: Tensor | None = None, group: int = 1) -> int:
    """Half of both square products, by symmetry, and the whole of the other."""
    tokens, channels = h.shape
    d = w.shape[1]
    return channels * (channels + 1) * (tokens + d) + (2 * tokens * channels * d if target is not None else 0)


OP = Op(
    name="hadamard_gram",
    schema=SCHEMA,
    candidates=(
        Candidate("triton", ("cuda",), run_triton, triton_missing, supports_triton),
        Candidate("cpp", ("cpu",), run_cpp, lambda: _native.missing("cpp"), supports_cpp),
        Candidate("torch", ("cpu", "cuda"), reference),
    ),
    check=check,
    samples=samples,
    bytes_moved=bytes_moved,
    flops=flops,
)
library.register_fake("pyprune::hadamard_gram", fake)
