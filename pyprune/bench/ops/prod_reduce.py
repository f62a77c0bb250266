"""prod_reduce against eager, torch.compile and einsum; the yardstick is torch's own reading of the same bytes.

torch's sum of bfloat16 is no bound: it reads at three quarters of the rate at which it reads float32.
"""

import itertools
from collections.abc import Iterator

import torch

from pyprune.bench.ops import DTYPES, Case, normal, on_gpu

CPU_SHAPES = ((32, 128, 3072), (1, 4096, 3072), (1, 128, 3072))
GPU_SHAPES = ((32, 128, 3072), (64, 197, 3072), (8, 2048, 14336))
HEADS = (32, 128, 768)
# Token counts of 32 short passages, 39 on average as in natural-language-inference pairs: 1,248 of 4,096 when padded.
# fmt: off
LENGTHS = [15, 18, 20, 22, 24, 25, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36,
           37, 38, 39, 40, 42, 43, 45, 46, 48, 50, 52, 55, 60, 66, 76, 72]
# fmt: on


def cases(device: str, tiny: bool) -> Iterator[Case]:
    if tiny:
        yield dense((2, 64, 96), "fp32", device)
        return
    for dtype in DTYPES:
        for shape in GPU_SHAPES if on_gpu(device) else CPU_SHAPES:
            yield dense(shape, dtype, device)
        yield dense(HEADS, dtype, device, group=64)
        yield ragged(dtype, device)
        yield probes(8, (32, 128, 3072), dtype, device)


def reading(x, y, *_):
    return x.sum(), y.sum()


def dense(shape: tuple[int, ...], dtype: str, device: str, group: int = 1) -> Case:
    def eager(x, y, *_):
        out = (x * y).sum(1)
        return out.unflatten(1, (-1, group)).sum(2) if group > 1 else out

    def einsum(x, y, *_):
        return torch.einsum("btjc,btjc->bj", *(t.unflatten(2, (-1, group)) for t in (x, y)))

    def arguments():
        return *(normal(*shape, dtype=dtype, device=device) for _ in range(2)), None, group, 0

    # Einsum is 200 times slower than the op on a single long sample: left out there.
    peers = {"eager": eager, **({"einsum": einsum} if shape[0] > 1 else {})}
    name = "x".join(map(str, shape)) + (f" group={group}" if group > 1 else "")
    return Case(name, dtype, arguments, peers, {"reading": reading})


def probes(count: int, shape: tuple[int, ...], dtype: str, device: str) -> Case:
    def eager(x, y, *_):
        return torch.stack([(x * probe).sum(1) for probe in y])

    def einsum(x, y, *_):
        return torch.einsum("btn,pbtn->pbn", x, y)

    def arguments():
        y = normal(count, *shape, dtype=dtype, device=device)
        return normal(*shape, dtype=dtype, device=device), y, None, 1, 0

    name = f"{'x'.join(map(str, shape))} probes={count}"
    return Case(name, dtype, arguments, {"eager": eager, "einsum": einsum}, {"reading": reading})


def ragged(dtype: str, device: str) -> Case:
    tokens, starts = sum(LENGTHS), [0, *itertools.accumulate(LENGTHS)]
    spans = [slice(a, b) for a, b in itertools.pairwise(starts)]

    def eager(x, y, *_):
        return torch.stack([(x[s] * y[s]).sum(0) for s in spans])

    def arguments():
        offsets = torch.tensor(starts, device=device)
        return *(normal(tokens, 3072, dtype=dtype, device=device) for _ in range(2)), offsets, 1, 0

    name = f"ragged {len(LENGTHS)} samples {tokens}x3072"
    return Case(name, dtype, arguments, {"eager": eager}, {"reading": reading}, compiled=False)
