"""Section `compile`: compiles what the next sections launch, in as many processes as there are processors.

One after the other their compilation alone would take longer than everything else. Later processes find the results in
Triton's cache.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from time import perf_counter

import torch

from benchmarks.gpu.record import Check, Settings
from pyprune.bench import ops as bench_ops
from pyprune.ops import OPS, Op
from pyprune.testing.cases import batches, cases, complete

# A process holds one case's tensors at a time on the GPU, some GB, and half a GB of context.
MOST_PROCESSES = 12


def units(settings: Settings) -> dict[str, Callable[[], Iterator[Check]]]:
    return {"compile": lambda: check(settings)}


def check(settings: Settings) -> Iterator[Check]:
    if torch.device(settings.device).type != "cuda":
        yield Check("compile", "skipped", "no CUDA device")
        return
    start = perf_counter()
    count = min(os.cpu_count() or 1, MOST_PROCESSES)
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "OMP_NUM_THREADS": "1"}
    order = json.dumps(asdict(settings))
    running = [
        subprocess.Popen(
            [sys.executable, __file__, order, str(i), str(count)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for i in range(count)
    ]  # fmt: skip
    outputs = [process.communicate()[0] for process in running]
    failures = [line for output in outputs for line in output.splitlines() if line.startswith("FAILED ")]
    ended = [process.returncode for process in running if process.returncode]
    seconds = perf_counter() - start
    if ended or failures:
        print(*outputs, sep="\n")
        yield Check("compile", "failed", " | ".join([*failures[:3], *(f"exit code {c}" for c in ended[:1])]), seconds)
    else:
        yield Check("compile", "passed", f"compiled in {count} processes", seconds)


@contextmanager
def compiled_only() -> Iterator[list[tuple]]:
    """Inside, a launch compiles its kernel and does not run it. Gives the (kernel, grid) that were to be launched."""
    from triton.runtime.jit import JITFunction

    launch, launches = JITFunction.__getitem__, []

    def compiled(kernel, grid):
        launches.append((kernel, grid))
        return partial(kernel.run, grid=grid, warmup=True)

    JITFunction.__getitem__ = compiled
    try:
        yield launches
    finally:
        JITFunction.__getitem__ = launch


def jobs(op: Op, settings: Settings) -> Iterator[tuple[str, Callable[[], tuple]]]:
    """(name, what makes the arguments) of all that the sections `ops`, `graph`, `sanitizer` and `bench` launch."""
    try:
        for name, args in cases(op, settings.device, settings.tiny):
            yield name, partial(tuple, args)
        for way in batches(op, settings.device) or ():
            for args in way:
                yield "a batch", partial(tuple, args)
    except torch.cuda.OutOfMemoryError:
        pass  # all processes may hold their largest case at once: what is left out is compiled later
    for case in bench_ops.cases(op, settings.device, settings.tiny):
        yield f"{case.shape} {case.dtype}", case.arguments


def compile_share(settings: Settings, share: int, shares: int) -> None:
    """Every `shares`-th job. All processes go through the same jobs in the same order."""
    number = 0
    with compiled_only(), torch.no_grad():
        for op in OPS.values():
            for candidate in op.candidates:
                if candidate.backend != "triton" or candidate.available() is not None:
                    continue
                for name, arguments in jobs(op, settings):
                    number += 1
                    if number % shares != share:
                        continue
                    try:
                        args = complete(op, arguments())
                        if candidate.supports(*args)[0]:
                            candidate.run(*args)
                    except torch.cuda.OutOfMemoryError:
                        pass
                    except Exception as error:
                        first = (str(error).strip().splitlines() or [""])[0]
                        print(f"FAILED {op.name}, {name}: {type(error).__name__}: {first}", flush=True)


if __name__ == "__main__":
    compile_share(Settings(**json.loads(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3]))
