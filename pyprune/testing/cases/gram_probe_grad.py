"""Cases of gram_probe_grad."""

import itertools
from collections.abc import Iterator

import torch

from pyprune.testing.cases import DTYPES, Case, normal


def cases(device: str, tiny: bool) -> Iterator[Case]:
    # samples, tokens, d
    shapes = [(2, 70, 130), (1, 1, 1), (3, 33, 64), (1, 197, 48), (5, 3, 600), (0, 4, 8), (2, 0, 8)]
    if not tiny:
        shapes += [(32, 128, 768), (1, 1024, 768), (4, 300, 4096)]
    for (samples, tokens, d), dtype in itertools.product(shapes, DTYPES):
        f = normal(device, samples, tokens, d, dtype=dtype, seed=samples + tokens)
        yield f"{samples} samples of {tokens} tokens, d {d} {dtype}", (f, keys(samples, device), None)
    padded = normal(device, 3, 40, 72)
    real = torch.arange(40, device=device) < torch.tensor([[40], [7], [0]], device=device)
    padded[~real] = torch.nan
    yield "padding of NaN", (padded, keys(3, device), real)
    rows = normal(device, 2, 20, 64, seed=3)
    rows[:, 4] = 0
    yield "a row of zeros", (rows, keys(2, device), None)
    yield "strided", (normal(device, 2, 64, 20).transpose(1, 2), keys(2, device), None)
    yield "part of wider rows", (normal(device, 2, 20, 128)[:, ::2, :64], keys(4, device)[::2], None)
    yield "large and small rows", (normal(device, 2, 20, 64) * torch.tensor([1e-8, 1e8], device=device)[:, None, None],
                                   keys(2, device), None)  # fmt: skip


def batches(device: str) -> list[list[tuple]]:
    f, own = normal(device, 3, 70, 90), keys(3, device)
    alone = [(f[b : b + 1], own[b : b + 1], None) for b in range(3)]
    return [[(f, own, None)], alone, [(f[:2], own[:2], None), (f[2:], own[2:], None)]]


def keys(samples: int, device: str) -> torch.Tensor:
    """One for each sample, in all 64 bits."""
    generator = torch.Generator().manual_seed(samples)
    return torch.randint(-(1 << 62), 1 << 62, (samples,), generator=generator).to(device)
