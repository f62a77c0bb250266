"""Section `bench`: every op against its peers, as `pyprune bench` measures them."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import zip_longest
from pathlib import Path
from time import perf_counter

from benchmarks.gpu.record import Check, Settings
from pyprune.bench.kernels import OWN, measure_case, record
from pyprune.bench.ops import Case, cases
from pyprune.bench.results import Results, table_path
from pyprune.ops import OPS, Op

# Resolved: the name of the commit comes from the repository that the script lies in.
BENCHMARKS = Path(__file__).resolve().parents[1]
# What a case may take, torch.compile's compilation included.
LEAST_S = 25


def units(settings: Settings) -> dict[str, Callable[[], Iterator[Check]]]:
    """One case of every op, then another one of every op, bf16 first: when time is over, no op goes without."""
    all_cases = [
        [(op, case) for case in sorted(cases(op, settings.device, settings.tiny), key=lambda case: case.dtype)]
        for op in OPS.values()
    ]
    return {
        f"{op.name} {case.shape} {case.dtype}": partial(check, op, case, settings)
        for in_turn in zip_longest(*all_cases)
        for op, case in filter(None, in_turn)
    }


def check(op: Op, case: Case, settings: Settings) -> Iterator[Check]:
    """A line, its rows written at once; speed is measured, not judged."""
    start = perf_counter()
    found = measure_case(op, case, settings.device, repeats=2 if settings.tiny else None, tiny=settings.tiny)
    unit, rate = found.rate(OWN)
    detail = f"{found.timings[OWN].median * 1e3:.3f} ms, {rate:.1f} {unit}, {found.share(OWN):.0%} of the ceiling; "
    detail += f"{found.winner} is the fastest"
    if settings.results:
        path = table_path(Path(settings.results), settings.device)
        results = Results(op.name, path=path, device=settings.device)
        record(results, found)
        results.write()
    yield Check(f"{op.name} {found.shape} {found.dtype}", "passed", detail, perf_counter() - start)


def run(script: Path, settings: Settings, *arguments: str) -> None:
    """A benchmark as its own command would run it, on the device of `settings`, its rows where they belong."""
    rows = ["--results", settings.results] if settings.results else ["--dry"]
    before = sys.argv
    sys.argv = [str(script), "--device", settings.device, *rows, *arguments]
    try:
        runpy.run_path(str(script), run_name="__main__")
    finally:
        sys.argv = before
