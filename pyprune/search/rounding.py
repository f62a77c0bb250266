"""From the best widths to widths that hardware likes: multiples of a granule, at the same budget."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from pyprune.core.anatomy import Anatomy
from pyprune.core.budget import unit_cost
from pyprune.core.limits import granule


def round_widths(
    counts: Mapping[str, int],
    values: Mapping[str, torch.Tensor],
    anatomy: Anatomy,
    limits: Mapping[str, float],
    length: float,
    least: Mapping[str, int],
    multiple_of: int,
) -> dict[str, int]:
    """`counts` with every group's channels a multiple of `multiple_of`, or all of them; never over `limits`.

    Widths are rounded down, but not below `least` (see `core.limits.floors`), and what that frees is spent again, a
    granule at a time, where a FLOP or a weight buys most of the scores `values`.
    """
    steps = {g.name: granule(g, multiple_of) for g in anatomy.groups}
    groups = {g.name: g for g in anatomy.groups}
    prices = {g.name: {r: unit_cost(g, r, length) for r in limits} for g in anatomy.groups}
    ranked = {name: v.double().sort(descending=True).values.cumsum(0) for name, v in values.items()}
    worth = {name: torch.cat([torch.zeros(1, dtype=torch.float64), v]).tolist() for name, v in ranked.items()}

    found = {}
    for name, count in counts.items():
        size = groups[name].size
        found[name] = size if count == size else max(count - count % steps[name], least[name])
    left = {r: limit - sum(prices[n][r] * c for n, c in found.items()) for r, limit in limits.items()}

    while True:
        best = None
        for name, count in found.items():
            wider = min(count - count % steps[name] + steps[name], groups[name].size)
            cost = {r: (wider - count) * price for r, price in prices[name].items()}
            if wider > count and all(cost[r] <= left[r] for r in limits):
                # Of several limits the one that this would use up most counts.
                share = max(cost[r] / left[r] for r in limits) if all(left.values()) else 1.0
                density = (worth[name][wider] - worth[name][count]) / max(share, 1e-300)
                if best is None or density > best[0]:
                    best = density, name, wider, cost
        if best is None:
            return found
        _, name, found[name], cost = best
        left = {r: left[r] - cost[r] for r in limits}
