"""Cases of channel_stats."""

import itertools
from collections.abc import Iterator

import torch

from pyprune.testing.cases import DTYPES, Case, far_apart, far_apart_fits, normal


def cases(device: str, tiny: bool) -> Iterator[Case]:
    shapes = [(2, 37, 100), (1, 1, 3), (2, 197, 70), (1, 600, 33), (1, 8, 2100), (2, 7, 5)]
    if not tiny:
        shapes += [(8, 2048, 3072), (64, 197, 768), (3, 513, 5000)]
    for shape, dtype in itertools.product(shapes, DTYPES):
        yield f"{shape} {dtype}", (normal(device, *shape, dtype=dtype), None, None)

    for dtype, wide in zip(DTYPES, (torch.int32, torch.int64, torch.int32), strict=True):
        x = normal(device, 1100, 40, dtype=dtype)
        x[:3] = x[1090:] = torch.nan
        offsets = torch.tensor([3, 4, 4, 41, 41, 560, 1090], dtype=wide, device=device)
        yield f"ragged between NaN {dtype} {wide}", (x, offsets, None)

    for dtype in DTYPES:
        x, mask = normal(device, 5, 600, 24, dtype=dtype), torch.zeros(5, 600, dtype=torch.bool, device=device)
        mask[0, :37] = mask[1, 590:] = mask[2, ::3] = mask[4] = True  # sample 3 has no token
        x[~mask] = torch.nan
        yield f"masked NaN {dtype}", (x, None, mask)
    yield "transposed mask", (normal(device, 4, 9, 24), None, normal(device, 9, 4).T > 0)

    x = normal(device, 2, 600, 40, seed=1)
    yield "mean 1e3, deviation 1e-2", (1e3 + 1e-2 * x, None, None)
    x[:, 0] = 1e4
    yield "an outlier in front", (x, None, None)
    yield "equal values", (torch.full((1, 530, 40), 0.1, device=device), None, None)

    x = normal(device, 3, 11, 64)
    buffer = torch.full((11, 3, 96), torch.nan, device=device)
    buffer[:, :, 16:80] = x.transpose(0, 1)
    yield "rows of a wider, transposed buffer", (buffer[:, :, 16:80].transpose(0, 1), None, None)
    yield "columns not contiguous", (x.mT.contiguous().mT, None, None)
    yield "one token for all", (x[:, :1].expand(3, 11, 64), None, None)
    if far_apart_fits(device):
        x = normal(device, 3, 64, dtype=torch.bfloat16)
        yield "rows 2^31 elements apart", (far_apart(device, x)[None], None, None)
        yield "ragged rows 2^31 elements apart", (far_apart(device, x), torch.tensor([0, 1, 3], device=device), None)


def batches(device: str) -> list[list[tuple]]:
    x = normal(device, 3, 530, 90)
    offsets = torch.arange(4, device=device) * 530
    alone = [(x[b : b + 1], None, None) for b in range(3)]
    ragged = (x.flatten(0, 1), offsets, None)
    padded = torch.cat([x, torch.full((3, 70, 90), torch.nan, device=device)], 1)
    real = (torch.arange(600, device=device) < 530).expand(3, 600)
    return [[(x, None, None)], alone, [ragged], [(padded, None, real)], [(x[:2], None, None), (x[2:], None, None)]]
