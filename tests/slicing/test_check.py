import math

import pytest
import torch

from pyprune.core.errors import MismatchError
from pyprune.core.plan import Plan
from pyprune.slicing.check import max_difference


def test_max_difference_looks_into_every_tensor():
    first = {"a": torch.zeros(2), "b": (torch.zeros(3), [torch.zeros(1)])}
    second = {"a": torch.tensor([0.0, 0.5]), "b": (torch.zeros(3), [torch.tensor([-2.0])])}
    assert max_difference(first, first) == 0
    assert max_difference(first, second) == 2


def test_nan_agrees_with_nothing():
    nan = torch.tensor([0.0, math.nan])
    assert max_difference(nan, torch.zeros(2)) == math.inf
    assert max_difference(nan, nan) == math.inf


@pytest.mark.parametrize("other", [{"b": torch.zeros(2)}, {"a": torch.zeros(3)}, {}])
def test_outputs_of_other_shape_are_refused(other):
    with pytest.raises(MismatchError):
        max_difference({"a": torch.zeros(2)}, other)


def test_what_a_plan_takes_from_either_of_two_widths_is_compared():
    first, second = torch.arange(4.0), torch.arange(4.0) + 10
    plan = Plan({"a.hidden": torch.tensor([0, 1]), "b.hidden": torch.tensor([1, 3])}, {"a.hidden": 4, "b.hidden": 4}, 1)
    assert max_difference((first, second), (first[:2], second[[1, 3]]), plan) == 0
    assert max_difference((first, second), (first[:2], second[[0, 3]]), plan) == 1
