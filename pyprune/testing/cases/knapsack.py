"""Cases of knapsack."""

from collections.abc import Iterator

import torch

from pyprune.testing.cases import Case, normal


def cases(device: str, tiny: bool) -> Iterator[Case]:
    shapes = [([2, 3, 1], 31), ([5] * 7, 32), ([257, 3], 70), ([9, 1, 4], 0), ([49] * 6, 500), ([3] * 40, 2100)]
    if not tiny:
        shapes += [([49] * 24, 10_000), ([1000] * 4, 3000)]
    for sizes, budget in shapes:
        offsets = torch.tensor([0, *sizes], device=device).cumsum(0)
        values = normal(device, sum(sizes)).double()
        # Some options are free, some dearer than the whole budget.
        costs = (normal(device, sum(sizes), seed=1).abs() * (budget / len(sizes))).long()
        costs[offsets[:-1]] = 0
        yield f"{len(sizes)} groups, budget {budget}", (values, costs, offsets, budget)
        yield f"{len(sizes)} groups, budget {budget}, ties", (values.round(), costs, offsets, budget)
    values, costs = (torch.arange(24, device=device).flip(0) % 7 for _ in range(2))
    yield "strides", (values.double()[::2], costs[::2], torch.tensor([0, 5, 12], device=device), 9)
