"""Cases of act_fwd_stats."""

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from pyprune.testing.cases import DTYPES, Case, far_apart, far_apart_fits, normal

ACTS = ("silu", "gelu", "gelu_tanh", "relu")
# (shape, act, gated, mask: 0 none, 1 [F], 2 [B, F], on the input)
SHAPES = [
    ((2, 37, 100), "silu", True, 2, False),
    ((1, 1, 3), "gelu", True, 0, False),
    ((1, 197, 40), "gelu_tanh", False, 1, True),
    ((1, 520, 33), "relu", True, 1, False),
    ((2, 37, 260), "gelu", False, 2, True),
    ((4, 0, 12), "silu", True, 0, False),
]
LARGE = [((8, 1024, 3072), "silu", True, 0, False), ((64, 197, 3072), "gelu", False, 2, False)]


def tensors(device: str, count: int, gated: bool, *shape: int, dtype=torch.float32) -> list[Tensor | None]:
    """`count` tensors like pre, the last of which is `up` or None."""
    made = [normal(device, *shape, dtype=dtype, seed=s) for s in range(count)]
    return made if gated else [*made[:-1], None]


def mask_of(device: str, kind: int, samples: int, columns: int) -> Tensor | None:
    """No mask, `[F]` or `[B, F]`; a third of it is zero."""
    if kind == 0:
        return None
    mask = normal(device, *(samples, columns)[2 - kind :], seed=7)
    mask.flatten()[::3] = 0
    return mask


def arguments(device: str, count: int, tiny: bool) -> Iterator[Case]:
    """Of an op on `count - 1` tensors like pre, up, act, mask, mask_before and cu_seqlens."""
    for (shape, act, gated, kind, before), dtype in itertools.product(SHAPES + ([] if tiny else LARGE), DTYPES):
        mask = mask_of(device, kind, shape[0], shape[-1])
        given = tensors(device, count, gated, *shape, dtype=dtype)
        yield f"{shape} {act} gated {gated} mask {kind} {before} {dtype}", (*given, act, mask, before, None)

    for i, (dtype, wide) in enumerate(zip(DTYPES, (torch.int32, torch.int64, torch.int32), strict=True)):
        given = tensors(device, count, i % 2 == 0, 600, 20, dtype=dtype)
        for t in given:
            if t is not None:
                t[:3] = t[590:] = torch.nan
        offsets = torch.tensor([3, 4, 4, 41, 41, 570, 590], dtype=wide, device=device)
        mask = mask_of(device, i % 3, 6, 20)
        yield f"ragged between NaN, {dtype} {wide}", (*given, ACTS[i % 4], mask, i % 2 == 1, offsets)

    given = tensors(device, count, True, 3, 11, 64)
    buffer = torch.full((11, 3, 96), torch.nan, device=device)
    buffer[:, :, 16:80] = given[0].transpose(0, 1)
    yield (
        "rows of a wider, transposed buffer",
        (buffer[:, :, 16:80].transpose(0, 1), *given[1:], "silu", None, False, None),
    )
    yield "columns not contiguous", (*given[:-1], given[-1].mT.contiguous().mT, "gelu", None, False, None)
    yield "one token for all", (given[0][:, :1].expand(3, 11, 64), *given[1:], "silu", None, False, None)
    if far_apart_fits(device):
        rows = tensors(device, count, True, 3, 64, dtype=torch.bfloat16)
        apart = [far_apart(device, rows[0]), *rows[1:]]
        yield "rows 2^31 elements apart", (*(t[None] for t in apart), "silu", None, False, None)
        yield "ragged rows 2^31 elements apart", (*apart, "gelu", None, False, torch.tensor([0, 1, 3], device=device))


def ways(device: str, count: int) -> list[list[tuple]]:
    """The same two samples: dense, each alone, ragged."""
    given, mask = tensors(device, count, True, 2, 520, 40), mask_of(device, 2, 2, 40)
    offsets = torch.arange(3, device=device) * 520
    part = lambda s: (*(t[s] for t in given), "gelu", mask[s], True, None)  # noqa: E731
    ragged = (*(t.flatten(0, 1) for t in given), "gelu", mask, True, offsets)
    return [[part(slice(None))], [part(slice(1)), part(slice(1, 2))], [ragged]]


PER_SAMPLE = (0, 1, 2, 3)


def cases(device: str, tiny: bool) -> Iterator[Case]:
    for i, (name, args) in enumerate(arguments(device, 2, tiny)):
        yield name, (*args, i % 4 != 0)


def batches(device: str) -> list[list[tuple]]:
    return [[(*args, True) for args in way] for way in ways(device, 2)]
