"""Section `bench`: every op against its peers, as `pyprune bench` measures them."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from time import perf_counter

from benchmarks.gpu.record import Check, Settings
from pyprune.bench.kernels import OWN, measure, record
from pyprune.bench.results import Results, table_path
from pyprune.ops import OPS

# Resolved: the name of the commit comes from the repository that the script lies in.
BENCHMARKS = Path(__file__).resolve().parents[1]


def units(settings: Settings) -> dict[str, Callable[[], Iterator[Check]]]:
    return {op: partial(check, op, settings) for op in OPS}


def check(op: str, settings: Settings) -> Iterator[Check]:
    """A line for every case, its rows written at once; speed is measured, not judged."""
    path = table_path(Path(settings.results), settings.device) if settings.results else None
    start = perf_counter()
    for found in measure(OPS[op], settings.device, repeats=2 if settings.tiny else None, tiny=settings.tiny):
        unit, rate = found.rate(OWN)
        detail = f"{found.timings[OWN].median * 1e3:.3f} ms, {rate:.1f} {unit}, {found.share(OWN):.0%} of the ceiling; "
        detail += f"{found.winner} is the fastest"
        if path is not None:
            results = Results(op, path=path, device=settings.device)
            record(results, found)
            results.write()
        yield Check(f"{op} {found.shape} {found.dtype}", "passed", detail, perf_counter() - start)
        start = perf_counter()


def run(script: Path, settings: Settings, *arguments: str) -> None:
    """A benchmark as its own command would run it, on the device of `settings`, its rows where they belong."""
    rows = ["--results", settings.results] if settings.results else ["--dry"]
    before = sys.argv
    sys.argv = [str(script), "--device", settings.device, *rows, *arguments]
    try:
        runpy.run_path(str(script), run_name="__main__")
    finally:
        sys.argv = before
