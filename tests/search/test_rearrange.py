"""Rearrangement: the publication's loop, literally, and what it must not touch."""

import pytest
import torch

from pyprune.core.plan import Plan
from pyprune.core.statistics import Statistics
from pyprune.search import rearrange


def published(gradients, kept):
    """The released loop: `masked` starts with the smallest gradients, every other unit joins and the worst leaves."""
    columns = gradients.double().T
    pruned = len(columns) - kept
    order = columns.square().sum(1).argsort(stable=True).tolist()
    masked = order[:pruned]
    for unit in order[pruned:]:
        masked.append(unit)
        rest = columns[masked].sum(0) - columns[masked]
        del masked[int(rest.square().sum(1).argmin())]
    return sorted(set(range(len(columns))) - set(masked))


def removed_norm(gradients, kept):
    stays = torch.zeros(gradients.shape[1], dtype=torch.bool)
    stays[kept] = True
    return float(gradients.double()[:, ~stays].sum(1).norm())


def statistics_of(samples=12, draws=2, sizes=(7, 40), seed=0):
    generator = torch.Generator().manual_seed(seed)
    gradients = {f"g{n}": torch.randn(samples * draws, n, generator=generator) for n in sizes}
    return Statistics(gradients, torch.full((samples,), 5), draws)


@pytest.mark.parametrize("seed", range(4))
def test_equals_the_published_loop(seed):
    statistics = statistics_of(seed=seed)
    kept = {"g7": torch.tensor([0, 3, 5]), "g40": torch.arange(0, 40, 3)}
    plan = rearrange(Plan(kept, {"g7": 7, "g40": 40}, 9.0, {"criterion": "fisher"}), statistics)
    for name, before in kept.items():
        assert plan.kept[name].tolist() == published(statistics.gradients[name], len(before))
    assert (plan.sizes, plan.length) == ({"g7": 7, "g40": 40}, 9.0)
    assert plan.meta == {"criterion": "fisher", "rearranged": True}


def test_the_removed_units_cancel_better_than_the_smallest_ones():
    statistics = statistics_of(samples=3)
    gradients = statistics.gradients["g40"]
    smallest_go = gradients.square().sum(0).argsort(descending=True)[:20]
    statistics = Statistics({"g40": gradients}, statistics.lengths, 2)
    plan = rearrange(Plan({"g40": smallest_go}, {"g40": 40}, 1.0), statistics)
    assert removed_norm(gradients, plan.kept["g40"]) < removed_norm(gradients, smallest_go)


def test_hand_case_opposite_units_go_together():
    # Removing 2 and -2 costs nothing; the search by squares would have removed 1 and 2, or 1 and -2.
    statistics = Statistics({"g": torch.tensor([[1.0, 2.0, -2.0, 3.0]])}, torch.tensor([4]))
    assert rearrange(Plan({"g": torch.tensor([2, 3])}, {"g": 4}, 1.0), statistics).kept["g"].tolist() == [0, 3]


@pytest.mark.parametrize("kept", [[], list(range(7))])
def test_empty_and_full_groups_stay(kept):
    statistics = statistics_of(sizes=(7,))
    plan = rearrange(Plan({"g7": torch.tensor(kept, dtype=torch.int64)}, {"g7": 7}, 1.0), statistics)
    assert plan.kept["g7"].tolist() == kept
