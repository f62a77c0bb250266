"""The surgeon against direct solutions: every removal is the best damped refit, and scores are additive curves."""

import pytest
import torch

from pyprune.importance.cost_curve import calibrated
from pyprune.importance.surgeon import eliminate
from pyprune.testing.numerics import ratio

DAMPING = 1e-2


def problem(size, width, d=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    n = size * width
    x = torch.randn(200, n, generator=generator, dtype=torch.float64) @ torch.randn(
        n, n, generator=generator, dtype=torch.float64
    )
    g = torch.randn(50, d, generator=generator, dtype=torch.float64)
    return torch.randn(d, n, generator=generator, dtype=torch.float64), x.T @ x, g.T @ g


def direct_refit(weight, gram, gone, width):
    """The change of the transposed weights when units `gone` leave and the others are refitted, solved in one go."""
    n = gram.shape[0]
    damped = gram + DAMPING * gram.diagonal().mean() * torch.eye(n, dtype=torch.float64)
    stay = torch.ones(n // width, dtype=torch.bool)
    stay[gone] = False
    channels = stay.repeat_interleave(width)
    dense = weight.T
    new = torch.zeros_like(dense)
    new[channels] = torch.linalg.solve(damped[channels][:, channels], damped[channels] @ dense)
    return new - dense, damped


@pytest.mark.parametrize(("size", "width"), [(400, 1), (17, 1), (6, 5), (1, 4), (1, 1)])
def test_updates_and_costs_are_those_of_the_damped_refit(size, width):
    weight, gram, metric = problem(size, width)
    found = eliminate(weight, gram, metric, width)
    assert sorted(found.order.tolist()) == list(range(size))
    assert found.removed[-1] == size
    for count, update in zip(found.removed, found.updates, strict=True):
        expected, damped = direct_refit(weight, gram, found.order[:count], width)
        ratio(update, expected)
        loss = torch.trace(expected.T @ damped @ expected @ metric)
        # The metric is damped by a thousandth of its mean diagonal: it may add that much and never takes away.
        assert 1 - 1e-9 <= float(found.cost[:count].sum() / loss) < 1.02


def test_the_first_to_go_is_the_cheapest_of_all():
    weight, gram, metric = problem(7, 3, seed=2)
    costs = []
    for unit in range(7):
        change, damped = direct_refit(weight, gram, torch.tensor([unit]), 3)
        costs.append(float(torch.trace(change.T @ damped @ change @ metric)))
    assert int(eliminate(weight, gram, metric, 3).order[0]) == min(range(7), key=costs.__getitem__)


def test_a_copy_of_a_unit_costs_next_to_nothing_once():
    """Fisher information would keep both of two equal neurons; a refit moves one's weights to the other."""
    weight, gram, metric = problem(10, 1, seed=3)
    twin = torch.arange(10)
    twin[7] = 2  # neuron 7 always fires as neuron 2 does
    gram = gram[twin][:, twin]
    found = eliminate(weight, gram, metric, 1)
    assert int(found.order[0]) in (2, 7)
    assert ({2, 7} - {int(found.order[0])}).pop() not in found.order[:3].tolist()


def test_a_dead_block_has_finite_scores():
    found = eliminate(
        torch.zeros(4, 8), torch.zeros(8, 8, dtype=torch.float64), torch.zeros(4, 4, dtype=torch.float64), 2
    )
    assert torch.isfinite(calibrated(found, torch.zeros(len(found.removed)))).all()
