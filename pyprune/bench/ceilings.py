"""What a device can do at best, measured beside the kernels: bytes copied and multiply-adds a second."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from pyprune.bench.ops import DTYPES
from pyprune.bench.timing import interleave

# Larger than the last-level cache of a GPU; on a CPU, where some caches hold 260 MB, what fits the usual tensors.
_COPY_BYTES = {"cuda": 2**30, "cpu": 2**26}
# Side of the square product. 8192 is where cuBLAS reaches its best rate; a CPU is there much earlier.
_GEMM_SIDE = {"cuda": 8192, "cpu": 2048}


@dataclass(frozen=True)
class Ceilings:
    """What limits time.

    bytes_s: bytes a second, read and written by a copy; on a CPU those that a sum reads, if they are more
    flops_s: FLOPs a second of a square matrix product; on a CPU those in float32, if they are more: one that has no
        units for the dtype does better by converting
    """

    bytes_s: float
    flops_s: float

    def seconds(self, moved: int, flops: int) -> float:
        """The least time for so many bytes and FLOPs, if both overlap."""
        return max(moved / self.bytes_s, flops / self.flops_s)


@cache
def ceilings(device: str, dtype: str, tiny: bool = False) -> Ceilings:
    """Measured once a process, device and dtype (a name of `DTYPES`). `tiny` only shows that it works."""
    kind = torch.device(device).type
    size = 2**16 if tiny else _COPY_BYTES[kind]
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    functions = {"copy": lambda: target.copy_(source)}
    if kind == "cpu":
        numbers = source.view(torch.float32)
        functions["read"] = lambda: numbers.sum()
    seconds = {name: t.median for name, t in interleave(functions, repeats=7, warmup=2, device=device).items()}
    bytes_s = max(2 * size / seconds["copy"], size / seconds.get("read", torch.inf))
    return Ceilings(bytes_s, _flops_s(device, dtype, tiny))


def _flops_s(device: str, dtype: str, tiny: bool) -> float:
    kind = torch.device(device).type
    side = 64 if tiny else _GEMM_SIDE[kind]
    if kind == "cuda" or dtype == "fp32":
        return _gemm_flops_s(device, dtype, side, repeats=7)
    single = ceilings(device, "fp32", tiny=tiny).flops_s
    # A small product tells whether the dtype has units of its own: without, the large one would take minutes.
    if _gemm_flops_s(device, dtype, min(side, 256), repeats=3) < single / 2:
        return single
    return max(single, _gemm_flops_s(device, dtype, side, repeats=7))


def _gemm_flops_s(device: str, dtype: str, side: int, repeats: int) -> float:
    a, b = (torch.randn(side, side, device=device).to(DTYPES[dtype]) for _ in range(2))
    timing = interleave({"gemm": lambda: a @ b}, repeats=repeats, warmup=2, device=device)["gemm"]
    return 2 * side**3 / timing.median
