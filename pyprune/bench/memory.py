"""Peak memory of a call: what it holds at its worst moment beyond what was there before."""

from collections.abc import Callable
from pathlib import Path

import torch

from pyprune.core.errors import InputError

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_memory(function: Callable[[], object]) -> int:
    """Bytes that `function()` holds at its peak, its result included, beyond those held before.

    On a CUDA machine the allocator's tensors (`torch.cuda.max_memory_allocated`); elsewhere the process's resident set,
    whose high-water mark Linux resets on request. Memory that an earlier call has freed but the C library has kept is
    counted as held before: call it once in a fresh process for figures to compare, and on CUDA after a warm-up, which
    takes what the libraries allocate once.

    Raises: InputError where there is neither CUDA nor a Linux that resets the mark.

    >>> peak_memory(lambda: bytearray(1 << 26)) >= 1 << 26
    True
    """
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = function()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated()
    else:
        try:
            # 5: set the high-water mark to the present resident set (proc(5)).
            _RESET.write_text("5")
        except OSError as error:
            raise InputError(f"peak_memory: needs CUDA or a writable {_RESET}, found {error}") from error
        before = _resident("VmRSS")
        result = function()
        peak = _resident("VmHWM")
    del result
    return max(0, peak - before)


def _resident(field: str) -> int:
    """A line of /proc/self/status, such as `VmHWM:   123 kB`, in bytes."""
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024
