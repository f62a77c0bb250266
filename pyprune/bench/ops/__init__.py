"""What `pyprune bench` measures: a module for every op, with shapes that matter and who else can do the job.

A module has `cases(device, tiny)`, which yields `Case`s; `tiny` asks for one small case that only shows that it works.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from pyprune.ops import Op

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Case:
    """One op on one shape and dtype, and what it is compared with.

    shape: a name such as `32x128x3072 group=64`
    dtype: `fp32` or `bf16`
    arguments: makes a new set of the op's arguments, in schema order, on the device
    peers: the same job by other means, called with those arguments: `eager`, from which `compile` (torch.compile) is
        made too, unless `compiled` is False; a named library where it can be imported; whatever a user might write
        instead
    yardsticks: what bounds the time, such as reading the same bytes; called with those arguments, timed in turns with
        the others, and not candidates for winning
    bytes_moved, flops: the floor of the job; by default the op's own formulas on the arguments
    """

    shape: str
    dtype: str
    arguments: Callable[[], tuple]
    peers: Mapping[str, Callable[..., Any]]
    yardsticks: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    compiled: bool = True
    bytes_moved: int | None = None
    flops: int | None = None


def cases(op: Op, device: str, tiny: bool = False) -> Iterator[Case]:
    """The cases of an op on `"cpu"` or a GPU: `"cuda"`, `"cuda:1"`, ..."""
    yield from importlib.import_module(f"pyprune.bench.ops.{op.name}").cases(device, tiny)


def on_gpu(device: str) -> bool:
    """Whether `device` is a GPU, whichever: larger shapes and GPU libraries are measured there."""
    return torch.device(device).type == "cuda"


def normal(*shape: int, dtype: str = "fp32", device: str = "cpu") -> torch.Tensor:
    """Standard normal numbers in a dtype of `DTYPES`."""
    return torch.randn(*shape, device=device).to(DTYPES[dtype])
