"""Cases of prod_reduce."""

import itertools
from collections.abc import Iterator

import torch

from pyprune.testing.cases import DTYPES, Case, far_apart, far_apart_fits, normal


def cases(device: str, tiny: bool) -> Iterator[Case]:
    pair = lambda *shape, dtype=torch.float32: tuple(normal(device, *shape, dtype=dtype, seed=s) for s in (0, 1))  # noqa: E731
    shapes = [
        ((2, 37, 100), 1, 0),
        ((1, 1, 3), 3, 0),
        ((3, 197, 192), 64, 0),
        ((2, 13, 51), 17, 0),
        ((1, 9, 8200), 4100, 0),
        ((2, 37, 5000), 1, 50),
        ((1, 1030, 70), 7, 0),
        ((2, 513, 96), 1, 32),
        ((4, 0, 12), 3, 0),
    ]
    if not tiny:
        shapes += [((8, 2048, 3072), 1, 0), ((64, 197, 768), 64, 0)]
    for (shape, group, mod_group), dtype in itertools.product(shapes, DTYPES):
        yield f"{shape} group {group} mod {mod_group} {dtype}", (*pair(*shape, dtype=dtype), None, group, mod_group)

    for (group, wide), dtype in itertools.product(((1, torch.int32), (8, torch.int64)), DTYPES):
        x, y = pair(1700, 40, dtype=dtype)
        for t in (x, y):
            t[:3] = t[1690:] = torch.nan
        offsets = torch.tensor([3, 4, 4, 41, 41, 650, 1690], dtype=wide, device=device)
        yield f"ragged between NaN, group {group} {dtype} {wide}", (x, y, offsets, group, 0)
    x, y = (t.requires_grad_() for t in pair(700, 24))
    yield "ragged, gradients", (x, y, torch.tensor([1, 5, 5, 600, 690], device=device), 4, 0)

    probed = [
        ((1, 2, 5, 33), 1, 0, torch.float32),
        ((3, 2, 38, 96), 32, 0, torch.float16),
        ((5, 1, 600, 70), 1, 7, torch.float32),
        ((9, 3, 7, 40), 1, 0, torch.bfloat16),
    ]
    if not tiny:
        probed += [((8, 32, 128, 3072), 1, 0, torch.bfloat16), ((40, 2, 700, 4200), 1, 0, torch.float32)]
    for shape, group, mod_group, dtype in probed:
        x, y = normal(device, *shape[1:], dtype=dtype), normal(device, *shape, dtype=dtype, seed=1)
        yield f"probes {shape} group {group} mod {mod_group} {dtype}", (x, y, None, group, mod_group)
    x, y = normal(device, 700, 40), normal(device, 5, 700, 40, seed=1)
    x[:3] = x[690:] = y[:, :3] = y[:, 690:] = torch.nan
    yield "ragged probes between NaN", (x, y, torch.tensor([3, 3, 41, 650, 690], device=device), 1, 8)
    yield "no probes", (x, y[:0], torch.tensor([3, 41], device=device), 1, 0)
    x, y = normal(device, 2, 9, 24).requires_grad_(), normal(device, 2, 3, 9, 24, seed=1).transpose(0, 1)
    yield "strided probes, gradients", (x, y.requires_grad_(), None, 1, 6)
    yield "one y for all probes", (x.detach(), y.detach()[:1].expand(6, 2, 9, 24), None, 4, 0)

    x, y = pair(3, 11, 64)
    buffer = torch.full((11, 3, 96), torch.nan, device=device)
    buffer[:, :, 16:80] = x.transpose(0, 1)
    yield "rows of a wider, transposed buffer", (buffer[:, :, 16:80].transpose(0, 1), y, None, 1, 0)
    yield "columns not contiguous", (x, y.mT.contiguous().mT, None, 8, 0)
    yield "one token for all", (x[:, :1].expand(3, 11, 64), y, None, 1, 0)
    if far_apart_fits(device):
        x, y = (normal(device, 3, 64, dtype=torch.bfloat16, seed=s) for s in (0, 1))
        yield "rows 2^31 elements apart", (far_apart(device, x)[None], y[None], None, 1, 0)
        yield "ragged rows 2^31 elements apart", (far_apart(device, x), y, torch.tensor([0, 1, 3], device=device), 1, 0)
        yield "probes 2^31 elements apart", (x[:1, None], far_apart(device, x)[:, None, None], None, 1, 0)


def batches(device: str) -> list[list[tuple]]:
    """Rows of the results in the order of probes, then samples."""
    x, y = normal(device, 2, 530, 90), normal(device, 3, 2, 530, 90, seed=1)
    offsets = torch.arange(3, device=device) * 530
    together = [(x, y, None, 3, 0)]
    alone = [(x[b : b + 1], probe[b : b + 1], None, 3, 0) for probe in y for b in range(2)]
    ragged = [(x.flatten(0, 1), y.flatten(1, 2), offsets, 3, 0)]
    one_by_one = [(x, probe, None, 3, 0) for probe in y]
    parted = [(x, y[:1], None, 3, 0), (x, y[1:], None, 3, 0)]
    return [together, alone, ragged, one_by_one, parted]
