"""Cases of latency_envelope."""

from collections.abc import Iterator

import torch

from pyprune.testing.cases import Case, normal


def cases(device: str, tiny: bool) -> Iterator[Case]:
    for shape in ((49,), (24, 48), (2, 1, 197), (5, 1), (0, 7)):
        yield f"{shape}", (normal(device, *shape).abs(),)
    yield "rising, with cliffs", (torch.arange(200.0, device=device) % 64 + torch.arange(200.0, device=device) // 64,)
    yield "all equal", (torch.ones(3, 40, dtype=torch.float64, device=device),)
    yield "transposed", (normal(device, 9, 33).abs().T,)
    if not tiny:
        yield "long", (normal(device, 3, 100_000).abs(),)
