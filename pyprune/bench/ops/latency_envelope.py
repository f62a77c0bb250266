"""latency_envelope against a flipped cumulative minimum."""

from collections.abc import Iterator

import torch

from pyprune.bench.ops import Case

# (tables, widths): every block of 24 at multiples of 64, and at every width.
SHAPES = ((24, 49), (24, 3072))


def cases(device: str, tiny: bool) -> Iterator[Case]:
    for shape in ((2, 7),) if tiny else SHAPES:

        def arguments(shape=shape):
            return (torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(device),)

        yield Case("x".join(map(str, shape)), "fp32", arguments, {"eager": eager})


def eager(latency):
    envelope, index = latency.flip(-1).cummin(-1)
    return envelope.flip(-1), latency.shape[-1] - 1 - index.flip(-1)
