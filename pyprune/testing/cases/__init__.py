"""Arguments to try the ops with: their own samples, and in `cases/<op>.py` the shapes at which kernels go wrong.

A module here has `cases(device, tiny)`, which yields (name, arguments in schema order), `tiny` leaving out what takes
seconds on a CPU; and, for ops whose first output has a row for each sample, `batches(device)`: ways to send the same
samples through, each a list of arguments whose outputs, one behind the other, must be the same bits. `PER_SAMPLE` names
the positions of the outputs that are, if not the first alone.
"""

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from pyprune.ops import Op

Case = tuple[str, tuple]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def cases(op: Op, device: str, tiny: bool) -> Iterator[Case]:
    """(name, all arguments in schema order) on `device`: the op's samples, then its module's cases."""
    for i, args in enumerate(op.samples()):
        yield f"sample {i}", tensors(complete(op, args), lambda t: moved(t, device))
    for name, args in module(op).cases(device, tiny):
        yield name, complete(op, args)


def batches(op: Op, device: str) -> list[list[tuple]] | None:
    """Ways to send the same samples through the op; None if its outputs are not per sample."""
    ways = getattr(module(op), "batches", None)
    return None if ways is None else [[complete(op, args) for args in way] for way in ways(device)]


def per_sample(op: Op) -> tuple[int, ...]:
    """Positions of the outputs that `batches` compares."""
    return getattr(module(op), "PER_SAMPLE", (0,))


def module(op: Op) -> Any:
    return importlib.import_module(f"pyprune.testing.cases.{op.name}")


def complete(op: Op, args: tuple) -> tuple:
    """The arguments with the schema's defaults for those that are left out."""
    return args + tuple(a.default_value for a in op.overload._schema.arguments[len(args) :])


def tensors(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """`value` with `change` applied to every tensor in it, also those inside lists and tuples."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, (list, tuple)):
        return type(value)(tensors(v, change) for v in value)
    return value


def leaves(value: Any) -> list[Tensor]:
    """All tensors in `value`, in order."""
    found: list[Tensor] = []
    tensors(value, found.append)
    return found


def moved(tensor: Tensor, device: str) -> Tensor:
    """On `device`, still a leaf that requires grad if it was."""
    return tensor.detach().to(device).requires_grad_(tensor.requires_grad)


def normal(device: str, *shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Standard normal numbers, the same on every call with the same seed and device."""
    return torch.randn(*shape, generator=torch.Generator(device).manual_seed(seed), device=device).to(dtype)


def far_apart(device: str, rows: Tensor) -> Tensor:
    """`rows` `[R, N]` in a buffer whose last row begins at least 2^31 elements behind the first.

    Offsets of 32 bits would wrap. On a CPU the pages in between are never touched and take no memory.
    """
    stride = -(-(2**31) // (rows.shape[0] - 1))
    wide = torch.empty(stride * (rows.shape[0] - 1) + rows.shape[1], dtype=rows.dtype, device=device)
    return wide.as_strided(rows.shape, (stride, 1)).copy_(rows)


def far_apart_fits(device: str) -> bool:
    """Whether there is memory for `far_apart` in a 16-bit dtype."""
    return torch.device(device).type != "cuda" or torch.cuda.mem_get_info()[0] > 2**33
