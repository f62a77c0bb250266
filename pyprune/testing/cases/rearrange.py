"""Cases of rearrange."""

from collections.abc import Iterator

import torch

from pyprune.testing.cases import Case, normal


def cases(device: str, tiny: bool) -> Iterator[Case]:
    # Members that fill no panel of 16 columns, joiners that fill no batch of 32.
    shapes = [(5, 33, 31), (3, 60, 1), (7, 57, 56), (64, 300, 140)]
    if not tiny:
        shapes += [(64, 1536, 768), (600, 400, 200)]
    for samples, units, keep in shapes:
        yield f"{samples} samples, keep {keep} of {units}", (normal(device, samples, units), keep)
    yield "bfloat16", (normal(device, 20, 50, dtype=torch.bfloat16), 17)
    yield "transposed", (normal(device, 50, 20).T, 17)
