"""Timing of several callables side by side: in turns, in one run, so that their ratios survive a noisy machine."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter

import torch

from pyprune.core.errors import InputError

# A millisecond of an H100: what the host takes to launch a round of some ten calls.
_AHEAD_CYCLES = 2_000_000

_Call = tuple[Callable[..., object], tuple]


@dataclass(frozen=True)
class Timing:
    """Seconds per call: the median and the 20th and 80th percentiles of all turns."""

    median: float
    p20: float
    p80: float
    samples: tuple[float, ...] = ()

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Timing":
        points = torch.tensor(seconds, dtype=torch.float64).quantile(torch.tensor([0.5, 0.2, 0.8], dtype=torch.float64))
        return cls(*points.tolist(), samples=tuple(seconds))


def interleave(
    functions: Mapping[str, Callable[..., object]],
    repeats: int = 20,
    warmup: int = 3,
    inputs: Sequence[tuple] = ((),),
    device: str | torch.device = "cpu",
) -> dict[str, Timing]:
    """Time each function `repeats` times, one call of each per round, starting every round with another one.

    inputs: argument tuples, one for every call in turn: give several of one shape, together larger than the last-level
        cache, and no call finds what the one before it has read.

    device: where the functions work. Times on a CUDA device are those of its events around each call, so they include
        the launches but not a wait of the host; elsewhere wall-clock time.

    Raises: InputError for no functions, no repeats or no inputs.

    >>> timings = interleave({"sum": lambda: sum(range(100))}, repeats=5)
    >>> timings["sum"].p20 <= timings["sum"].median <= timings["sum"].p80
    True
    """
    if not functions or repeats < 1 or warmup < 0 or not inputs:
        raise InputError(
            f"interleave: needs a function, an input and a repeat, got {len(functions)}, {len(inputs)}, {repeats}"
        )
    device = torch.device(device)
    timer = partial(_events, device) if device.type == "cuda" else _wall_clock
    names = list(functions)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for i in range(warmup + repeats):
        first = i % len(names)
        order = names[first:] + names[:first]
        calls = [(functions[name], inputs[(i + k) % len(inputs)]) for k, name in enumerate(order)]
        for name, elapsed in zip(order, timer(calls), strict=True):
            if i >= warmup:
                seconds[name].append(elapsed)
    return {name: Timing.of(values) for name, values in seconds.items()}


def _wall_clock(calls: Sequence[_Call]) -> list[float]:
    elapsed = []
    for function, arguments in calls:
        start = perf_counter()
        function(*arguments)
        elapsed.append(perf_counter() - start)
    return elapsed


def _events(device: torch.device, calls: Sequence[_Call]) -> list[float]:
    """One synchronisation per round: the host runs ahead, as it does in a model, for the device sleeps first."""
    pairs = []
    with torch.cuda.device(device):
        torch.cuda._sleep(_AHEAD_CYCLES)
        for function, arguments in calls:
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            function(*arguments)
            stop.record()
            pairs.append((start, stop))
        torch.cuda.synchronize()
    return [start.elapsed_time(stop) / 1e3 for start, stop in pairs]
