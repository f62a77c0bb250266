"""Section `sanitizer`: compute-sanitizer over every kernel on small shapes, its tools side by side, within a limit."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from time import perf_counter

import torch

from benchmarks.gpu.graph import KERNELS
from benchmarks.gpu.group import run
from benchmarks.gpu.record import Check, Settings
from pyprune.ops import OPS
from pyprune.testing.cases import cases
from pyprune.testing.ladder import call

TOOLS = ("memcheck", "racecheck", "initcheck")
LIMIT_S = 100
FOUND = 86  # the exit code that says so
# Each case of a Triton kernel that has other constants is compiled anew, and everything runs some tens of times slower.
MOST_CASES = 12


def units(settings: Settings) -> dict[str, Callable[[], Iterator[Check]]]:
    return {"sanitizer": lambda: check(settings)}


def check(settings: Settings) -> Iterator[Check]:
    program = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if torch.device(settings.device).type != "cuda" or program is None:
        reason = "compute-sanitizer is not installed" if program is None else "no CUDA device"
        yield from (Check(tool, "skipped", reason) for tool in TOOLS)
        return
    with ThreadPoolExecutor() as pool:
        yield from pool.map(lambda tool: check_with(tool, program, settings.device), TOOLS)


def check_with(tool: str, program: str, device: str) -> Check:
    command = [program, "--tool", tool, "--error-exitcode", str(FOUND), sys.executable, __file__, device]
    # Torch hands out parts of larger blocks, where an access past the end of a tensor stays inside: not here.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    start = perf_counter()
    try:
        done = run(command, environment, LIMIT_S)
    except subprocess.TimeoutExpired:
        return Check(tool, "skipped", f"not through after {LIMIT_S} s", perf_counter() - start)
    return verdict(tool, done.returncode, done.stdout, perf_counter() - start)


def verdict(tool: str, code: int, output: str, seconds: float) -> Check:
    """Errors that the tool found fail; a tool that cannot work on this device is a reason to skip."""
    lines = [line.removeprefix("=========").strip() for line in output.splitlines() if line.strip("= \n")]
    # racecheck calls its line RACECHECK SUMMARY.
    summary = next((line for line in reversed(lines) if " SUMMARY: " in line), None)
    if code == 0 and summary is not None:
        return Check(tool, "passed", summary, seconds)
    if "Device not supported" in output:
        return Check(tool, "skipped", "compute-sanitizer: Device not supported", seconds)
    if code == FOUND:
        print(output)
        marks = ("Invalid", "Uninitialized", "Error: Race", "Error: Potential")
        return Check(tool, "failed", next((x for x in lines if x.startswith(marks)), summary or ""), seconds)
    print(output)
    return Check(tool, "failed", f"exit code {code}: {lines[-1] if lines else 'no output'}", seconds)


def main() -> None:
    device = sys.argv[1]
    for op in OPS.values():
        for candidate in op.candidates:
            if candidate.backend not in KERNELS or candidate.available() is not None:
                continue
            served = (args for _, args in cases(op, device, tiny=True) if candidate.supports(*args)[0])
            for args in islice(served, MOST_CASES):
                call(op, candidate, args)
            torch.cuda.synchronize()


if __name__ == "__main__":
    main()
