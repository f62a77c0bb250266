"""Cases of linear_cross_entropy."""

import itertools
import math
from collections.abc import Iterator

import torch

from pyprune.ops.linear_cross_entropy import IGNORED, TARGETS
from pyprune.testing.cases import DTYPES, Case, far_apart, far_apart_fits, normal


def arguments(
    device: str, rows: int, words: int, d: int, target: str, dtype: torch.dtype = torch.float32, bias: bool = False
) -> tuple:
    """All arguments; logits of standard deviation 1, every fifth row without a label."""
    x = normal(device, rows, d, dtype=dtype)
    weight = (normal(device, words, d, seed=1) / math.sqrt(d)).to(dtype)
    b = normal(device, words, dtype=dtype, seed=2) if bias else None
    labels, teacher, temperature = None, (None, None, None), 1.0
    if target == "labels":
        labels = torch.randint(words, (rows,), generator=torch.Generator(device).manual_seed(3), device=device)
        labels[4::5] = IGNORED
    if target == "kl":
        teacher_weight = (normal(device, words, d + 3, seed=5) / math.sqrt(d)).to(dtype)
        teacher, temperature = (normal(device, rows, d + 3, dtype=dtype, seed=4), teacher_weight, b), 2.0
    return x, weight, b, labels, target, *teacher, temperature, 11, None


def cases(device: str, tiny: bool) -> Iterator[Case]:
    for target, (rows, words, d) in itertools.product(TARGETS, ((3, 2100, 33), (1, 1, 1))):
        yield f"{rows} rows, {words} words, d {d} {target}", arguments(device, rows, words, d, target, bias=rows > 1)
    if not tiny:
        # Several chunks, the last one short; more words than 16 bits count.
        for target, dtype in itertools.product(TARGETS, DTYPES):
            for rows, words, d in ((300, 30522, 64), (1100, 128256, 32)):
                if device == "cuda" or rows * words < 10**7:
                    name = f"{rows} rows, {words} words, d {d} {target} {dtype}"
                    yield name, arguments(device, rows, words, d, target, dtype)
    for target in TARGETS:
        x, weight, b, *rest = arguments(device, 3, 70, 8, target, bias=True)
        b[5:40] = -torch.inf
        if rest[0] is not None:
            rest[0][:] = 50
        yield f"masked words, {target}", (x, weight, b, *rest)
        x, weight, _, *rest = arguments(device, 4, 70, 8, target)
        yield f"logits of 1e4, {target}", (x * 1e4, weight, None, *rest)

    x, weight, b, labels, *rest = arguments(device, 5, 90, 16, "labels", bias=True)
    wide = torch.full((5, 40), torch.nan, device=device)
    wide[:, 7:23] = x
    yield "part of a wider x, transposed weight", (wide[:, 7:23], weight.T.contiguous().T, b, labels, *rest)
    spread = lambda t: torch.stack([t, t], 1)[:, 0]  # noqa: E731
    yield "one row for all, bias and labels with gaps", (x[:1].expand(5, 16), weight, spread(b), spread(labels), *rest)
    yield "no row has a label", (x, weight, b, torch.full_like(labels, IGNORED), *rest)
    if far_apart_fits(device):
        x, weight, b, labels, *rest = arguments(device, 3, 70, 16, "labels", torch.bfloat16)
        yield "rows of x 2^31 elements apart", (far_apart(device, x), weight, b, labels, *rest)
