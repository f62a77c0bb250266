"""Section `bench`: the script benchmarks/ops/<op>.py of every op."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from time import perf_counter

from benchmarks.gpu.record import Check, Settings
from pyprune.ops import OPS

# Resolved: the name of the commit comes from the repository that the script lies in.
BENCHMARKS = Path(__file__).resolve().parents[1]


def units(settings: Settings) -> dict[str, Callable[[], Iterator[Check]]]:
    return {op: partial(check, op, settings) for op in OPS}


def check(op: str, settings: Settings) -> Iterator[Check]:
    script = BENCHMARKS / "ops" / f"{op}.py"
    if not script.exists():
        yield Check(op, "skipped", f"there is no benchmarks/ops/{op}.py")
        return
    start = perf_counter()
    run(script, settings, *(["--tiny", "--repeats", "2"] if settings.tiny else []))
    yield Check(op, "passed", seconds=perf_counter() - start)


def run(script: Path, settings: Settings, *arguments: str) -> None:
    """A benchmark as its own command would run it, on the device of `settings`, its rows where they belong."""
    rows = ["--results", settings.results] if settings.results else ["--dry"]
    before = sys.argv
    sys.argv = [str(script), "--device", settings.device, *rows, *arguments]
    try:
        runpy.run_path(str(script), run_name="__main__")
    finally:
        sys.argv = before
