"""knapsack against the same recurrence in torch, a vector of all budgets at a time."""

from collections.abc import Iterator

import torch

from pyprune.bench.ops import Case
from pyprune.ops.knapsack import reference

# (groups, options, budget): two blocks in each of 12 or 32 layers, widths at multiples of 64 of 3072.
SHAPES = ((24, 49, 10_000), (64, 49, 10_000))


def cases(device: str, tiny: bool) -> Iterator[Case]:
    for groups, options, budget in ((4, 5, 50),) if tiny else SHAPES:

        def arguments(groups=groups, options=options, budget=budget):
            generator = torch.Generator().manual_seed(0)
            shape = groups, options
            values = torch.rand(shape, generator=generator, dtype=torch.float64).sort(1).values
            costs = torch.randint(2 * budget // groups, shape, generator=generator).sort(1).values
            costs[:, 0] = 0
            offsets = torch.arange(groups + 1) * options
            return *(t.to(device) for t in (values.flatten(), costs.flatten(), offsets)), budget

        # `fp32` only chooses the ceilings that are shown beside; values are float64, costs int64.
        name = f"{groups}x{options} budget={budget} float64"
        yield Case(name, "fp32", arguments, {"torch": reference}, compiled=False)
