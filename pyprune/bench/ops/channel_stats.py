"""channel_stats against three torch calls and torch.compile; the yardstick is torch's own reading of the same bytes."""

from collections.abc import Iterator

import torch

from pyprune.bench.ops import DTYPES, Case, normal, on_gpu

CPU_SHAPES = ((32, 128, 3072), (1, 4096, 3072))
GPU_SHAPES = ((32, 128, 3072), (64, 197, 3072), (8, 2048, 14336))


def cases(device: str, tiny: bool) -> Iterator[Case]:
    if tiny:
        yield dense((2, 64, 96), "fp32", device)
        return
    for dtype in DTYPES:
        for shape in GPU_SHAPES if on_gpu(device) else CPU_SHAPES:
            yield dense(shape, dtype, device)
        yield padded(dtype, device)


def eager(x, *_):
    """As scores of activation statistics are written, but with results in fp32: four times faster than `var_mean`."""
    mean = x.mean(1, dtype=torch.float32)
    return mean, ((x - mean[:, None]) ** 2).sum(1), x.abs().sum(1, dtype=torch.float32)


def var_mean(x, *_):
    variance, mean = torch.var_mean(x.float(), 1, correction=0)
    return mean, variance * x.shape[1], x.abs().sum(1, dtype=torch.float32)


def reading(x, *_):
    return x.sum()


def dense(shape: tuple[int, ...], dtype: str, device: str) -> Case:
    def arguments():
        return normal(*shape, dtype=dtype, device=device), None, None

    return Case(
        "x".join(map(str, shape)), dtype, arguments, {"eager": eager, "var_mean": var_mean}, {"reading": reading}
    )


def padded(dtype: str, device: str) -> Case:
    """32 samples of 13 to 106 of 128 tokens, 60 on average."""
    lengths = [13 + 3 * i for i in range(32)]

    def masked(x, _, mask):
        real, n = mask[:, :, None], mask.sum(1)[:, None]
        x = x.float() * real
        mean = x.sum(1) / n
        return mean, ((x - mean[:, None]) ** 2 * real).sum(1), x.abs().sum(1)

    def arguments():
        mask = torch.arange(128, device=device) < torch.tensor(lengths, device=device)[:, None]
        return normal(32, 128, 3072, dtype=dtype, device=device), None, mask

    size = 3072 * sum(lengths) * DTYPES[dtype].itemsize + 3 * 4 * 32 * 3072
    return Case("32x128x3072 padded", dtype, arguments, {"eager": masked}, bytes_moved=size)
