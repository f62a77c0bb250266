"""Cases of act_bwd_maskgrad."""

from collections.abc import Iterator

from pyprune.testing.cases import Case
from pyprune.testing.cases.act_fwd_stats import arguments, ways

PER_SAMPLE = (0, 1, 2, 3)


def cases(device: str, tiny: bool) -> Iterator[Case]:
    yield from arguments(device, 3, tiny)


def batches(device: str) -> list[list[tuple]]:
    return ways(device, 3)
