"""Cases of hadamard_gram."""

import itertools
from collections.abc import Iterator

from pyprune.testing.cases import DTYPES, Case, normal


def cases(device: str, tiny: bool) -> Iterator[Case]:
    # tokens, units, group, d
    shapes = [
        (37, 100, 1, 20),
        (1, 3, 1, 1),
        (197, 7, 64, 48),
        (64, 1030, 1, 8),
        (5, 3, 600, 7),
        (130, 40, 33, 16),
        (0, 6, 2, 4),
    ]
    if not tiny:
        shapes += [(1024, 3072, 1, 768), (2048, 12, 64, 768)]
    for (tokens, units, group, d), dtype in itertools.product(shapes, DTYPES):
        make = lambda *shape, seed, dtype=dtype: normal(device, *shape, dtype=dtype, seed=seed)  # noqa: E731
        h, w, target = make(tokens, units * group, seed=0), make(units * group, d, seed=1), make(tokens, d, seed=2)
        yield f"{tokens} tokens, {units} units of {group}, d {d} {dtype}", (h, w, target, group)
    h, w, target = normal(device, 30, 64), normal(device, 16, 64, seed=1), normal(device, 30, 32, seed=2)
    yield "transposed h and w, part of a target", (h.T.contiguous().T, w.T, target[:, :16], 16)
    yield "no target", (h, w.T, None, 4)
