"""Cases of gather_compact."""

from collections.abc import Iterator

import torch

from pyprune.testing.cases import DTYPES, Case, far_apart, far_apart_fits, normal

COPIED = (*DTYPES, torch.float64, torch.int16, torch.int32, torch.int64)


def cases(device: str, tiny: bool) -> Iterator[Case]:
    def kept(n: int, share: float = 0.5, seed: int = 0) -> torch.Tensor:
        return (torch.rand(n, generator=torch.Generator().manual_seed(seed)) < share).nonzero()[:, 0].to(device)

    def numbers(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
        return (8 * normal(device, *shape, seed=seed)).to(dtype)

    sizes = [1, 15, 31, 33, 64, 100, 333]
    for dtype in COPIED:
        square = [numbers(n, n + 3, dtype=dtype, seed=n) for n in sizes]
        rows, columns = [kept(n) for n in sizes], [kept(n + 3, seed=1) for n in sizes]
        none = [None] * len(sizes)
        vectors = [t[:, 0].contiguous() for t in square]
        yield f"rows and columns {dtype}", (square, rows, columns, none, none, 1)
        yield f"rows {dtype}", (square + vectors, rows * 2, none * 2, none * 2, none * 2, 1)
        yield f"columns, padded {dtype}", (square, none, columns, none, none, 64)
        if dtype not in DTYPES:
            continue
        factors = [normal(device, len(i), seed=len(i)) for i in rows], [normal(device, len(i)) for i in columns]
        yield f"scaled {dtype}", (square, rows, columns, *factors, 8)
        yield f"scaled vectors and rows {dtype}", (vectors + square, rows * 2, none * 2, factors[0] * 2, none * 2, 16)

    w = numbers(100, 200)
    for share in (0.02, 0.98, 1.0, 0.0):
        few = kept(100, share), kept(200, share, seed=2)
        yield f"{share:.0%} of both", ([w, w], [few[0], None], [None, few[1]], [None] * 2, [None] * 2, 3)
    heads = (torch.tensor([0, 2, 3], device=device)[:, None] * 64 + torch.arange(64, device=device)).flatten()
    for dtype in DTYPES:
        q = numbers(256, 256, dtype=dtype)
        scale = normal(device, 192)
        yield (
            f"heads {dtype}",
            ([q, q[0], q], [heads, heads, None], [None, None, heads], [None] * 3, [None, None, scale]),
        )
    mixed = [numbers(9, 40, dtype=dtype) for dtype in COPIED]
    none = [None] * len(mixed)
    yield "dtypes mixed", (mixed, [kept(9)] * len(mixed), [kept(40)] * len(mixed), none, none, 4)
    yield "scaled, not cut", ([w, w[0]], [None] * 2, [None] * 2, [normal(device, 100), normal(device, 200)], [None] * 2)

    buffer = numbers(80, 100)
    strided = [buffer[:, 3:90], buffer.T, buffer[:, 1], buffer[:1].expand(60, 100), buffer[::2, ::3]]
    rows = [kept(t.shape[0]) for t in strided]
    columns = [kept(t.shape[1], seed=3) if t.dim() == 2 else None for t in strided]
    yield "strides", (strided, rows, columns, [None] * 5, [None] * 5, 1)
    yield "strides, rows", (strided, rows, [None] * 5, [None] * 5, [None] * 5, 8)
    step = torch.arange(0, 160, 2, device=device)
    yield "indices and scales of a stride", ([w], [kept(200)[:50:2]], [step[::2]], [None], [normal(device, 80)[::2]])
    if far_apart_fits(device):
        far = far_apart(device, numbers(3, 64, dtype=torch.bfloat16))
        ends = torch.tensor([0, 2], device=device)
        yield "rows 2^31 elements apart", ([far, far], [ends, ends], [None, kept(64)], [None] * 2, [None] * 2)
    if not tiny:
        for dtype in DTYPES:
            up, down = numbers(3072, 768, dtype=dtype), numbers(768, 3072, dtype=dtype)
            units = kept(3072)
            scale = normal(device, len(units))
            yield (
                f"BERT-base's feed-forward {dtype}",
                ([up, down], [units, None], [None, units], [None] * 2, [None, scale], 64),
            )
