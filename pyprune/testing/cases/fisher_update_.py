"""Cases of fisher_update_."""

import itertools
from collections.abc import Iterator

import torch

from pyprune.testing.cases import DTYPES, Case, far_apart, far_apart_fits, normal


def cases(device: str, tiny: bool) -> Iterator[Case]:
    make = lambda *shape, **options: normal(device, *shape, **options)  # noqa: E731
    shapes = [(37, 51), (1, 130), (600, 12)]
    if not tiny:
        shapes += [(2048, 3072), (64, 14336), (20_000, 12)]
    for i, ((rows, units), dtype) in enumerate(itertools.product(shapes, DTYPES)):
        scale = make(rows, seed=1) if i % 2 else None
        yield f"{rows} x {units} {dtype}", (make(units, seed=2), make(rows, units, dtype=dtype), scale)
    g = make(40, 96)
    yield "F float64", (make(96, seed=2).double(), g, None)
    yield "F float64, bfloat16", (make(96, seed=2).double(), g.bfloat16(), make(40, seed=1))
    yield "F and scale with strides", (make(192, seed=2)[::2], g, make(80, seed=1)[::2])
    yield "columns of a wider g", (make(64, seed=2), g[:, 16:80], None)
    yield "transposed", (make(40, seed=2), g.T, make(96, seed=1))
    yield "one row for all", (make(96, seed=2), g[:1].expand(300, 96), None)
    if far_apart_fits(device):
        far = far_apart(device, make(3, 64, dtype=torch.bfloat16))
        yield "rows 2^31 elements apart", (make(64, seed=2), far, make(3, seed=1))
