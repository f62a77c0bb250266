"""latency_envelope: what a width costs when it may be padded up, and the width to pad to.

Measured latency is not monotone in the width: a few units below a multiple of the hardware's tile may be slower than
the multiple itself. Padding up with zeros is always legal, so a width costs the least of all widths from it on.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, library

from pyprune.core.errors import InputError
from pyprune.ops import _native
from pyprune.ops._dispatch import Candidate, Op

SCHEMA = "(Tensor latency) -> (Tensor, Tensor)"


def latency_envelope(latency: Tensor) -> tuple[Tensor, Tensor]:
    """The lower monotone envelope: `envelope[..., i] = min over j >= i of latency[..., j]`, and the smallest such j.

    latency: `[..., n]`, float32 or float64, by rising width, in any unit; infinite for a width that cannot be run.

    Returns (envelope, index): the shape and dtype of `latency`, and int64: `latency[index[i]] == envelope[i]`, and
    `index[i]` is the width to pad i to (i itself if that is no slower). Computed on the CPU; CUDA tensors are copied
    there and wait for the device. Not differentiable.

    Raises: InputError for another dtype, no dimension, NaN, or a negative latency.

    >>> latency_envelope(torch.tensor([1.0, 4.0, 3.0, 3.0, 5.0]))
    (tensor([1., 3., 3., 3., 5.]), tensor([0, 2, 2, 3, 4]))
    """
    return torch.ops.pyprune.latency_envelope.default(latency.detach())


def check(latency: Tensor) -> None:
    if latency.dim() < 1 or latency.dtype not in (torch.float32, torch.float64):
        raise InputError(f"latency_envelope: latency must be float32 or float64 [..., n], got {latency.dtype} "
                         f"{list(latency.shape)}")  # fmt: skip


def check_values(latency: Tensor) -> None:
    check(latency)
    if not bool((latency >= 0).all()):
        bad = latency[~(latency >= 0)]
        raise InputError(f"latency_envelope: latency must not be negative or NaN, got {float(bad[0])}; measure again")


def reference(latency: Tensor) -> tuple[Tensor, Tensor]:
    """The definition: the minimum of what follows, and the next width that attains it."""
    n = latency.shape[-1]
    envelope = latency.flip(-1).cummin(-1).values.flip(-1)
    width = torch.arange(n, device=latency.device).expand(latency.shape)
    attained = torch.where(latency == envelope, width, n)
    return envelope, attained.flip(-1).cummin(-1).values.flip(-1)


def run_cpp(latency: Tensor) -> tuple[Tensor, Tensor]:
    source = latency.cpu().contiguous()
    envelope, index = source.new_empty(source.shape), source.new_empty(source.shape, dtype=torch.int64)
    if source.numel():
        rows = (t.view(-1, source.shape[-1]) for t in (source, envelope, index))
        _native.op("cpp", "latency_envelope")(*rows)
    return envelope.to(latency.device), index.to(latency.device)


def fake(latency: Tensor) -> tuple[Tensor, Tensor]:
    check(latency)
    return latency.new_empty(latency.shape), latency.new_empty(latency.shape, dtype=torch.int64)


def samples() -> Iterator[tuple]:
    generator = torch.Generator().manual_seed(0)
    for shape in ((7,), (3, 33), (2, 3, 5), (1,), (4, 0)):
        yield (torch.rand(shape, generator=generator),)
        # One of three latencies each: full of ties.
        yield (torch.randint(3, shape, generator=generator).double(),)


def bytes_moved(latency: Tensor) -> int:
    return latency.numel() * (2 * latency.element_size() + 8)


def flops(latency: Tensor) -> int:
    """One comparison a width."""
    return latency.numel()


OP = Op(
    name="latency_envelope",
    schema=SCHEMA,
    candidates=(
        # A scan over a table of some kilobytes: GPU tensors are worth the copy to the CPU.
        Candidate("cpp", ("cpu", "cuda"), run_cpp, lambda: _native.missing("cpp")),
        Candidate("torch", ("cpu", "cuda"), reference),
    ),
    check=check_values,
    samples=samples,
    bytes_moved=bytes_moved,
    flops=flops,
)
library.register_fake("pyprune::latency_envelope", fake)
