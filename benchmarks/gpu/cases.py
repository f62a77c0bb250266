"""Arguments to try the ops with: their own samples, and shapes at which kernels go wrong, on any device."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from pyprune.ops import Op

Case = tuple[str, tuple]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def cases(op: Op, device: str, tiny: bool) -> Iterator[Case]:
    """(name, arguments in schema order) on `device`; `tiny` leaves out what takes seconds on a CPU."""
    for i, args in enumerate(op.samples()):
        yield f"sample {i}", tuple(moved(a, device) for a in complete(op, args))
    for name, args in LARGER.get(op.name, lambda *_: ())(device, tiny):
        yield name, complete(op, args)


def complete(op: Op, args: tuple) -> tuple:
    """The arguments with the schema's defaults for those that are left out."""
    return args + tuple(a.default_value for a in op.overload._schema.arguments[len(args) :])


def moved(value, device: str):
    """A tensor on `device`, still a leaf that requires grad if it was; anything else as it is."""
    if not isinstance(value, Tensor):
        return value
    return value.detach().to(device).requires_grad_(value.requires_grad)


def normal(device: str, *shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator(device).manual_seed(seed), device=device).to(dtype)


def prod_reduce(device: str, tiny: bool) -> Iterator[Case]:
    pair = lambda *shape, dtype=torch.float32: tuple(normal(device, *shape, dtype=dtype, seed=s) for s in (0, 1))  # noqa: E731
    shapes = [
        ((2, 37, 100), 1, 0),
        ((1, 1, 3), 3, 0),
        ((3, 197, 192), 64, 0),
        ((2, 13, 51), 17, 0),
        ((1, 9, 8200), 4100, 0),
        ((2, 37, 5000), 1, 50),
        ((1, 1300, 70), 7, 0),
        ((2, 513, 96), 1, 32),
        ((4, 0, 12), 3, 0),
    ]
    if not tiny:
        shapes += [((8, 2048, 3072), 1, 0), ((64, 197, 768), 64, 0)]
    for (shape, group, mod_group), dtype in itertools.product(shapes, DTYPES):
        yield f"{shape} group {group} mod {mod_group} {dtype}", (*pair(*shape, dtype=dtype), None, group, mod_group)

    for dtype, group, wide in itertools.product(DTYPES, (1, 8), (torch.int32, torch.int64)):
        x, y = pair(2000, 40, dtype=dtype)
        for t in (x, y):
            t[:3] = t[1990:] = torch.nan
        offsets = torch.tensor([3, 4, 4, 41, 41, 650, 1990], dtype=wide, device=device)
        yield f"ragged between NaN, group {group} {dtype} {wide}", (x, y, offsets, group, 0)
    x, y = (t.requires_grad_() for t in pair(700, 24))
    yield "ragged, gradients", (x, y, torch.tensor([1, 5, 5, 600, 690], device=device), 4, 0)

    x, y = pair(3, 11, 64)
    buffer = torch.full((11, 3, 96), torch.nan, device=device)
    buffer[:, :, 16:80] = x.transpose(0, 1)
    yield "rows of a wider, transposed buffer", (buffer[:, :, 16:80].transpose(0, 1), y, None, 1, 0)
    yield "columns not contiguous", (x, y.mT.contiguous().mT, None, 8, 0)
    yield "one token for all", (x[:, :1].expand(3, 11, 64), y, None, 1, 0)
    if not tiny and torch.device(device).type == "cuda" and torch.cuda.mem_get_info()[0] > 2**33:
        # The third row begins 2^31 elements behind the first: offsets of 32 bits would wrap.
        x = torch.empty(2**31 + 64, dtype=torch.bfloat16, device=device).as_strided((1, 3, 64), (0, 2**30, 1))
        x.copy_(normal(device, 1, 3, 64))
        yield "rows 2^31 elements apart", (x, normal(device, 1, 3, 64, dtype=torch.bfloat16, seed=1), None, 1, 0)


def hadamard_gram(device: str, tiny: bool) -> Iterator[Case]:
    # tokens, units, group, d
    shapes = [
        (37, 100, 1, 20),
        (1, 3, 1, 1),
        (197, 12, 64, 48),
        (64, 1030, 1, 8),
        (5, 3, 600, 7),
        (130, 40, 33, 16),
        (0, 6, 2, 4),
    ]
    if not tiny:
        shapes += [(1024, 3072, 1, 768), (2048, 12, 64, 768)]
    for (tokens, units, group, d), dtype in itertools.product(shapes, DTYPES):
        make = lambda *shape, seed, dtype=dtype: normal(device, *shape, dtype=dtype, seed=seed)  # noqa: E731
        h, w, target = make(tokens, units * group, seed=0), make(units * group, d, seed=1), make(tokens, d, seed=2)
        yield f"{tokens} tokens, {units} units of {group}, d {d} {dtype}", (h, w, target, group)
    h, w, target = normal(device, 30, 64), normal(device, 16, 64, seed=1), normal(device, 30, 32, seed=2)
    yield "transposed h and w, part of a target", (h.T.contiguous().T, w.T, target[:, :16], 16)
    yield "no target", (h, w.T, None, 4)


def rearrange(device: str, tiny: bool) -> Iterator[Case]:
    shapes = [(5, 33, 31), (3, 60, 1), (7, 57, 56)]
    if not tiny:
        shapes += [(64, 300, 140), (64, 1536, 768)]
    for samples, units, keep in shapes:
        yield f"{samples} samples, keep {keep} of {units}", (normal(device, samples, units), keep)
    yield "bfloat16", (normal(device, 20, 50, dtype=torch.bfloat16), 17)
    yield "transposed", (normal(device, 50, 20).T, 17)


LARGER: dict[str, Callable[[str, bool], Iterator[Case]]] = {
    "prod_reduce": prod_reduce,
    "hadamard_gram": hadamard_gram,
    "rearrange": rearrange,
}


def prod_reduce_batches(device: str) -> list[list[tuple]]:
    x, y = (normal(device, 5, 1100, 300, seed=s) for s in (0, 1))
    offsets = torch.arange(6, device=device) * 1100
    alone = [(x[b : b + 1], y[b : b + 1], None, 3, 0) for b in range(5)]
    ragged = (x.flatten(0, 1), y.flatten(0, 1), offsets, 3, 0)
    return [[(x, y, None, 3, 0)], alone, [ragged], [(x[:2], y[:2], None, 3, 0), (x[2:], y[2:], None, 3, 0)]]


# Ways to send the same samples through an op, for ops whose outputs have a row for each: their bits must be the same.
BATCHES: dict[str, Callable[[str], list[list[tuple]]]] = {"prod_reduce": prod_reduce_batches}
