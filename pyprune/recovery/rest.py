"""ReSt's schedule: how much data and how many layers a size needs (Poh, Chan and Lim 2024, whose scripts list them).

Above its break-point a model is retrained well enough by its masks and output heads alone. Below it, over sizes from a
tenth under the break-point down to 20 %, the share of the data grows from 60 % to all of it, and the layers that are
trained from a quarter to three quarters: one rule that gives all of the published pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

_MASKS_ALONE = 0.10
_GRID = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
_SMALLEST = _GRID[-1]


class Effort(NamedTuple):
    """The `share` of the data that is trained on, and how many of the last `layers` are."""

    share: float
    layers: int


MASKS_ALONE = Effort(_MASKS_ALONE, 0)


def effort(keep: float, break_point: float, layers: int) -> Effort:
    """What a model needs that keeps the share `keep` of its prunable parameters, of so many `layers`.

    >>> [effort(keep / 10, 0.6, 4) for keep in (6, 5, 2)]
    [Effort(share=0.1, layers=0), Effort(share=0.6, layers=1), Effort(share=1.0, layers=3)]
    """
    if keep >= break_point - 1e-9:
        return MASKS_ALONE
    first = break_point - 0.1
    down = (first - keep) / (first - _SMALLEST) if first > _SMALLEST else 0.0
    down = min(max(down, 0.0), 1.0)
    return Effort(0.6 + 0.4 * down, int(layers * (0.25 + 0.5 * down) + 0.5))


def break_point(suffices: Callable[[float], bool], keep: float) -> float:
    """The smallest size of 90, 80, ..., 20 % at which masks alone suffice, 1.0 where they never do.

    They are known not to at `keep`. The sizes above it are searched by halves: `suffices(size)` is asked three times
    at most.
    """
    sizes = [1.0, *(size for size in _GRID if size > keep + 1e-9)]
    low, high = 0, len(sizes)  # sizes[low] suffices, sizes[high] does not
    while high - low > 1:
        middle = (low + high) // 2
        if suffices(sizes[middle]):
            low = middle
        else:
            high = middle
    return sizes[low]
