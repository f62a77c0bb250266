"""Curves of what removals cost: what is changed at their points, and scores that pass through measured costs."""

import pytest
import torch

from pyprune.importance.cost_curve import LEVELS, CostCurve, calibrated, channels, removal, removals


def test_points_are_the_shares_that_stay():
    assert [100 - count for count in removals(100)] == [int(100 * level) for level in LEVELS]
    assert removals(1) == [1]


def test_removed_units_write_nothing():
    weight = torch.randn(4, 20, generator=torch.Generator().manual_seed(0))
    scores = torch.tensor([3.0, -1.0, 2.0, 9.0, -2.0])
    curve = removal(weight, scores, width=4)
    assert curve.order.tolist() == [4, 1, 2, 0, 3]
    assert curve.cost.tolist() == [0, 0, 2, 3, 9]
    for count, update in zip(curve.removed, curve.updates, strict=True):
        left = (weight.T + update).view(5, 4, 4)
        gone = curve.order[:count]
        assert (left[gone] == 0).all()
        assert torch.equal(left[curve.order[count:]], weight.T.view(5, 4, 4)[curve.order[count:]])


def test_units_that_stay_make_up_for_those_that_go():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 12, generator=generator)
    x = torch.randn(50, 12, generator=generator, dtype=torch.float64) @ torch.randn(
        12, 12, generator=generator, dtype=torch.float64
    )
    gram, damping = x.T @ x, 1e-2
    ridge = damping * gram.diagonal().mean()
    curve = removal(weight, torch.rand(6, generator=generator), 2, gram, damping)
    for count, update in zip(curve.removed[:-1], curve.updates, strict=False):
        left = channels(curve.order[count:], 2)
        # min over the rows that stay: |X_left W - X W0|^2 + ridge |W - W0_left|^2
        a = torch.cat([x[:, left], ridge.sqrt() * torch.eye(len(left), dtype=torch.float64)])
        b = torch.cat([x @ weight.double().T, ridge.sqrt() * weight.double().T[left]])
        fitted = torch.linalg.lstsq(a, b).solution
        torch.testing.assert_close(weight.double().T[left] + update[left], fitted, rtol=1e-4, atol=1e-5)
        assert (weight.T + update)[channels(curve.order[:count], 2)].abs().max() == 0
    assert torch.equal(curve.updates[-1], -weight.T)


def test_calibrated_scores_pass_through_the_measured_costs():
    cost = torch.tensor([1.0, 1.0, 2.0, 4.0, 8.0], dtype=torch.float64)
    order = torch.tensor([3, 0, 4, 1, 2])
    scores = calibrated(CostCurve(order, cost, [2, 5], torch.zeros(2, 5, 1)), torch.tensor([20.0, 1600.0]))
    in_order = scores[order]
    assert (in_order.diff() > 0).all()
    assert float(in_order[:2].sum()) == pytest.approx(20.0)
    assert float(in_order.sum()) == pytest.approx(1600.0)


def test_a_measured_cost_that_falls_gives_non_decreasing_scores():
    curve = CostCurve(torch.arange(6), torch.ones(6, dtype=torch.float64), [2, 4, 6], torch.zeros(3, 6, 1))
    scores = calibrated(curve, torch.tensor([10.0, 5.0, 12.0]))
    assert (scores.diff() >= 0).all()
    assert torch.isfinite(scores).all()
    assert float(scores.sum()) == pytest.approx(12.0)


def test_units_that_seem_to_cost_nothing_share_what_is_measured():
    cost = torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    scores = calibrated(CostCurve(torch.arange(5), cost, [4, 5], torch.zeros(2, 5, 1)), torch.tensor([40.0, 100.0]))
    assert scores[:4].tolist() == pytest.approx([10.0] * 4, rel=1e-6)
    assert float(scores[4]) == pytest.approx(60.0, rel=1e-6)
