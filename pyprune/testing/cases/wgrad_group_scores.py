"""Cases of wgrad_group_scores."""

from collections.abc import Iterator

import torch

from pyprune.testing.cases import DTYPES, Case, far_apart, far_apart_fits, normal


def cases(device: str, tiny: bool) -> Iterator[Case]:
    def three(batch, tokens, p, d, dtype=torch.float32):
        shapes = (batch, tokens, p), (batch, tokens, d), (p, d)
        return tuple(normal(device, *shape, dtype=dtype, seed=seed) for seed, shape in enumerate(shapes))

    # More than one chunk of a sample's tokens, tiles that stand over both edges, one row, one column.
    for i, shape in enumerate([(2, 37, 100, 70), (1, 1, 3, 5), (3, 197, 24, 129), (2, 600, 13, 33), (5, 9, 1, 260)]):
        for j, mode in enumerate(("abs", "sq", "mix")):
            yield f"{shape} {mode} {DTYPES[(i + j) % 3]}", (*three(*shape, dtype=DTYPES[(i + j) % 3]), None, mode)
    if not tiny:
        for dtype in DTYPES:
            yield f"BERT FC1 {dtype}", (*three(32, 128, 3072, 768, dtype=dtype), None, "sq")

    dy, x, w = (t.squeeze(0) for t in three(1, 700, 40, 50))
    for t in (dy, x):
        t[:3] = t[690:] = torch.nan
    for wide, mode in ((torch.int32, "abs"), (torch.int64, "sq"), (torch.int64, "mix")):
        offsets = torch.tensor([3, 4, 4, 41, 41, 650, 690], dtype=wide, device=device)
        yield f"ragged between NaN, {mode} {wide}", (dy, x, w, offsets, mode)
    yield "ragged, no sample", (dy, x, w, torch.tensor([5], device=device), "mix")
    yield "ragged, only empty samples", (dy, x, w, torch.tensor([5, 5, 5], device=device), "sq")

    dy, x, w = three(3, 11, 40, 64)
    buffer = torch.full((11, 3, 96), torch.nan, device=device)
    buffer[:, :, 16:80] = x.transpose(0, 1)
    yield "rows of a wider, transposed buffer", (dy, buffer[:, :, 16:80].transpose(0, 1), w, None, "mix")
    yield "columns not contiguous", (dy.mT.contiguous().mT, x, w.T.contiguous().T, None, "sq")
    yield "one token for all", (dy[:, :1].expand(3, 11, 40), x, w, None, "abs")
    if far_apart_fits(device):
        dy, x, w = three(3, 1, 20, 40, dtype=torch.float16)
        args = far_apart(device, dy.squeeze(1)), far_apart(device, x.squeeze(1)), far_apart(device, w)
        yield "rows 2^31 elements apart", (args[0][None], args[1][None], args[2], None, "abs")
        yield "ragged rows 2^31 elements apart", (*args, torch.tensor([0, 1, 3], device=device), "sq")
