"""Section `memcheck`: compute-sanitizer's memcheck over every kernel on small shapes, within a box of time."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from time import perf_counter

import torch

from benchmarks.gpu.graph import KERNELS
from benchmarks.gpu.group import run
from benchmarks.gpu.record import Check, Settings
from pyprune.ops import OPS
from pyprune.testing.cases import cases
from pyprune.testing.ladder import call

LIMIT_S = 90
FOUND = 86  # the exit code that says so


def units(settings: Settings) -> dict[str, Callable[[], Iterator[Check]]]:
    return {"memcheck": lambda: check(settings)}


def check(settings: Settings) -> Iterator[Check]:
    tool = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if torch.device(settings.device).type != "cuda" or tool is None:
        yield Check("memcheck", "skipped", "compute-sanitizer is not installed" if tool is None else "no CUDA device")
        return
    command = [tool, "--tool", "memcheck", "--error-exitcode", str(FOUND), sys.executable, __file__, settings.device]
    # Torch hands out parts of larger blocks, where an access past the end of a tensor stays inside: not here.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    start = perf_counter()
    try:
        done = run(command, environment, LIMIT_S)
    except subprocess.TimeoutExpired:
        yield Check("memcheck", "skipped", f"not through after {LIMIT_S} s", perf_counter() - start)
        return
    yield verdict(done.returncode, done.stdout, perf_counter() - start)


def verdict(code: int, output: str, seconds: float) -> Check:
    """Errors that the tool found fail; a tool that cannot work on this device is a reason to skip."""
    lines = [line.removeprefix("=========").strip() for line in output.splitlines() if line.strip("= \n")]
    summary = next((line for line in reversed(lines) if line.startswith("ERROR SUMMARY")), None)
    if code == 0 and summary is not None:
        return Check("memcheck", "passed", summary, seconds)
    if "Device not supported" in output:
        return Check("memcheck", "skipped", "compute-sanitizer: Device not supported", seconds)
    if code == FOUND:
        print(output)
        return Check("memcheck", "failed", next((x for x in lines if x.startswith("Invalid")), summary or ""), seconds)
    print(output)
    return Check("memcheck", "failed", f"exit code {code}: {lines[-1] if lines else 'no output'}", seconds)


def main() -> None:
    device = sys.argv[1]
    for op in OPS.values():
        for candidate in op.candidates:
            if candidate.backend not in KERNELS or candidate.available() is not None:
                continue
            for _, args in cases(op, device, tiny=True):
                if candidate.supports(*args)[0]:
                    call(op, candidate, args)
            torch.cuda.synchronize()


if __name__ == "__main__":
    main()
