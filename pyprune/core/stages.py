"""Seconds and peak memory of every stage, and progress bars with an estimate of the time left."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from tqdm.auto import tqdm

T = TypeVar("T")


@dataclass(frozen=True)
class Stage:
    """One finished stage: wall `seconds` and the peak resident (`host_mib`) and CUDA (`cuda_mib`) memory meanwhile."""

    name: str
    seconds: float
    host_mib: float
    cuda_mib: float = 0.0


@dataclass
class Stages:
    """A run's log of stages; `quiet` also switches the progress bars off."""

    quiet: bool = False
    log: list[Stage] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the block; a failed stage is not logged."""
        _reset_peak()
        start = time.perf_counter()
        yield
        self.log.append(Stage(name, time.perf_counter() - start, _peak_host_mib(), _peak_cuda_mib()))

    def progress(self, items: Iterable[T], description: str, total: int | None = None) -> Iterable[T]:
        """`items` behind a progress bar on stderr (tqdm shows the time left); plain when quiet."""
        return tqdm(
            items, desc=description, total=total, disable=self.quiet, leave=False, file=sys.stderr, dynamic_ncols=True
        )


def _reset_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    # Linux resets the resident high-water mark of a process that writes 5 to its clear_refs; elsewhere the mark of the
    # whole process stands in, which is an upper bound.
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        with suppress(OSError):  # a container may mount /proc read-only: the upper bound stands
            clear.write_text("5")


def _peak_host_mib() -> float:
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def _peak_cuda_mib() -> float:
    return torch.cuda.max_memory_allocated() / (1 << 20) if torch.cuda.is_available() else 0.0
