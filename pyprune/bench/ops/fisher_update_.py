"""fisher_update_ against eager, torch.compile and the same sum in float64; the yardstick is torch's reading of g."""

from collections.abc import Iterator

import torch

from pyprune.bench.ops import DTYPES, Case, normal

# (samples, units): the mini-batches of Kwon et al., one gradient a sample, and neurons of a large model.
SHAPES = ((64, 3072), (2048, 3072), (128, 14336))


def cases(device: str, tiny: bool) -> Iterator[Case]:
    for dtype in ("fp32",) if tiny else DTYPES:
        for samples, units in ((5, 40),) if tiny else SHAPES:

            def arguments(samples=samples, units=units, dtype=dtype):
                return torch.zeros(units, device=device), normal(samples, units, dtype=dtype, device=device), None

            yield Case(f"{samples}x{units}", dtype, arguments, {"eager": eager, "float64": wide}, {"reading": reading})


def eager(F, g, scale):
    F += g.square().sum(0)


def wide(F, g, scale):
    F += g.double().square().sum(0)


def reading(F, g, scale):
    return g.sum()
