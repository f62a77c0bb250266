"""Cases of gemm_dact_maskgrad."""

import itertools
from collections.abc import Iterator

import torch

from pyprune.testing.cases import DTYPES, Case, far_apart, far_apart_fits, normal

PER_SAMPLE = (0, 1, 2, 3)
# (shape of pre, d, act, gated): one tile, several, one and a bit; columns that no vector divides; no d at all
SHAPES = [
    ((1, 1, 3), 1, "gelu", True),
    ((2, 37, 300), 70, "silu", True),
    ((1, 197, 36), 33, "gelu_tanh", False),
    ((1, 270, 20), 16, "relu", True),
    ((4, 0, 12), 8, "silu", True),
    ((2, 3, 8), 0, "gelu", False),
]
LARGE = [((8, 1024, 3072), 768, "gelu", False), ((64, 197, 3072), 768, "silu", True)]


def inputs(device: str, d: int, *shape: int, dtype=torch.float32) -> tuple:
    """dy, w2, pre and up."""
    dy = normal(device, *shape[:-1], d, dtype=dtype)
    w2 = normal(device, d, shape[-1], dtype=dtype, seed=1)
    pre, up = (normal(device, *shape, dtype=dtype, seed=s) for s in (2, 3))
    return dy, w2, pre, up


def cases(device: str, tiny: bool) -> Iterator[Case]:
    for (shape, d, act, gated), dtype in itertools.product(SHAPES + ([] if tiny else LARGE), DTYPES):
        dy, w2, pre, up = inputs(device, d, *shape, dtype=dtype)
        yield f"{shape} d {d} {act} gated {gated} {dtype}", (dy, w2, pre, up if gated else None, act, None)

    for i, (dtype, wide) in enumerate(zip(DTYPES, (torch.int32, torch.int64, torch.int32), strict=True)):
        dy, w2, pre, up = inputs(device, 24, 300, 20, dtype=dtype)
        for t in (dy, pre, up):
            t[:3] = t[290:] = torch.nan
        offsets = torch.tensor([3, 4, 4, 41, 41, 270, 290], dtype=wide, device=device)
        yield (
            f"ragged between NaN, {dtype} {wide}",
            (dy, w2, pre, None if i == 1 else up, ("silu", "gelu", "relu")[i], offsets),
        )

    dy, w2, pre, up = inputs(device, 24, 3, 11, 64)
    buffer = torch.full((11, 3, 96), torch.nan, device=device)
    buffer[:, :, 16:80] = pre.transpose(0, 1)
    yield (
        "rows of a wider, transposed buffer, rows of a wider w2",
        (dy, normal(device, 24, 80, seed=1)[:, 8:72], buffer[:, :, 16:80].transpose(0, 1), up, "silu", None),
    )
    yield (
        "columns not contiguous",
        (dy.mT.contiguous().mT, w2.T.contiguous().T, pre, up.mT.contiguous().mT, "gelu", None),
    )
    yield "one token for all", (dy[:, :1].expand(3, 11, 24), w2, pre, up, "silu", None)
    if far_apart_fits(device):
        dy, w2, pre, up = inputs(device, 3, 3, 64, dtype=torch.float16)
        dy, w2, pre = (far_apart(device, t) for t in (dy, w2, pre))
        yield "rows 2^31 elements apart", (dy[None], w2, pre[None], up[None], "silu", None)


def batches(device: str) -> list[list[tuple]]:
    """The same two samples: dense, each alone, ragged."""
    dy, w2, pre, up = inputs(device, 24, 2, 200, 40)
    part = lambda s: (dy[s], w2, pre[s], up[s], "gelu", None)  # noqa: E731
    offsets = torch.arange(3, device=device) * 200
    ragged = (dy.flatten(0, 1), w2, pre.flatten(0, 1), up.flatten(0, 1), "gelu", offsets)
    return [[part(slice(None))], [part(slice(1)), part(slice(1, 2))], [ragged]]
