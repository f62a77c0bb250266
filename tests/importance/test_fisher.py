"""Fisher information of masks, by hand."""

import pytest
import torch

from pyprune.core.statistics import Statistics
from pyprune.importance.fisher import KWON_BATCH, per_batch, per_sample
from pyprune.importance.registry import CRITERIA, Evidence
from pyprune.testing import numerics

# Three samples, two units; the second unit's gradients cancel.
G = torch.tensor([[1.0, 2.0], [2.0, -2.0], [-1.0, 3.0]])


def statistics(gradients, draws=1):
    return Statistics({"a": gradients}, torch.ones(len(gradients) // draws, dtype=torch.int64), draws)


def check(found, expected):
    numerics.exact(found["a"], torch.tensor(expected, dtype=torch.float64))


def test_per_sample_sums_squares():
    check(per_sample(statistics(G)), [6.0, 17.0])


def test_per_sample_counts_every_draw():
    check(per_sample(statistics(torch.cat([G, -G]), draws=2)), [12.0, 34.0])


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        (1, [6.0, 17.0]),
        (2, [1.5**2 + 1.0, 0.0 + 9.0]),  # means (1.5, 0) and (-1, 3)
        (3, [(2 / 3) ** 2, 1.0]),
        (32, [(2 / 3) ** 2, 1.0]),
    ],
)
def test_per_batch_squares_the_means(batch, expected):
    torch.testing.assert_close(per_batch(statistics(G), batch)["a"], torch.tensor(expected, dtype=torch.float64))


def test_per_batch_never_mixes_draws():
    # Rows are sample 0 draw 0, sample 0 draw 1, sample 1 draw 0, sample 1 draw 1: batch means 2 and -2.
    found = per_batch(statistics(torch.tensor([[1.0], [-1.0], [3.0], [-3.0]]), draws=2), 2)
    check(found, [8.0])


def test_opposite_gradients_cancel_within_a_batch_only():
    g = torch.tensor([[1.0], [-1.0]])
    check(per_batch(statistics(g), 2), [0.0])
    check(per_batch(statistics(g), 1), [2.0])
    check(per_sample(statistics(g)), [2.0])


def test_float32_gradients_are_summed_in_float64():
    g = torch.full((1_000, 1), 1e-3)
    g[0] = 16.0  # in float32, 16^2 + 1e-3^2 is 16^2
    numerics.ratio(per_sample(statistics(g))["a"] - 16.0**2, g[1:].double().square().sum(0), torch.float32)


def test_the_registered_criteria_read_the_statistics():
    g = torch.randn(2 * KWON_BATCH + 5, 3, generator=torch.Generator().manual_seed(0))
    evidence = Evidence(None, None, statistics(g))
    numerics.exact(CRITERIA["fisher"].values(evidence)["a"], per_sample(statistics(g))["a"])
    numerics.exact(CRITERIA["fisher_batch"].values(evidence)["a"], per_batch(statistics(g), 32)["a"])
    assert CRITERIA["fisher"].needs == "gradients"
    assert CRITERIA["fisher_batch"].needs == "gradients"
