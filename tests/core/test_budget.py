"""Budgets: what is read, what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyprune.core.budget import Budget, amount_text, parse_amount
from pyprune.core.errors import BudgetError
from pyprune.models.adapter import adapter_for
from pyprune.testing.models import tiny_model


@pytest.mark.parametrize(
    ("value", "amount", "relative"),
    [
        (0.6, 0.6, True),
        (1, 1.0, True),
        ("0.6", 0.6, True),
        (" 60 % ", 0.6, True),
        ("100%", 1.0, True),
        (".5", 0.5, True),
        ("5e-1", 0.5, True),
        ("1.2G", 1.2e9, False),
        ("7m", 7e6, False),
        ("3 K", 3e3, False),
        ("2B", 2e9, False),
        ("1e-3T", 1e9, False),
    ],
)
def test_amounts(value, amount, relative):
    limit = parse_amount("flops", value)
    assert (limit.amount, limit.relative) == (pytest.approx(amount, rel=1e-15), relative)


@pytest.mark.parametrize(
    "value",
    [
        *(0, 0.0, -0.5, 1.5, 2, float("nan"), float("inf"), -float("inf"), True, False, None, [0.5], {"a": 1}, 1j),
        *(
            "",
            "0",
            "0%",
            "-1",
            "-60%",
            "101%",
            "1.5",
            "100",
            "nan",
            "inf",
            "1e400G",
            "0.6X",
            "60%%",
            "G",
            "1.2 G H",
            "0,6",
        ),
    ],
)
def test_malformed_amounts(value):
    with pytest.raises(BudgetError, match="budget flops="):
        parse_amount("flops", value)


@pytest.mark.parametrize("spec", [{}, None, 0.6, "0.6", ["flops"], {"time": 0.5}, {"flops": 0.5, "latency": 0.5}])
def test_malformed_budgets(spec):
    with pytest.raises(BudgetError):
        Budget.parse(spec)


def test_absolute_amounts():
    model = tiny_model("bert")
    anatomy = adapter_for(model).anatomy(model)
    budget = Budget.parse({"flops": "25%", "params": "1K"})
    assert Budget.parse(budget) is budget
    assert budget.absolute(anatomy, 7.0) == {"flops": 0.25 * anatomy.flops(7.0), "params": 1000.0}


@given(st.floats(1e-3, 1e15))
def test_a_printed_amount_is_read_back_and_never_less(amount):
    read = parse_amount("flops", amount_text(amount))
    assert not read.relative
    assert amount * (1 - 1e-15) <= read.amount <= amount * (1 + 1e-6) + 1e-3


@given(st.floats(1e-6, 1.0), st.floats(1.0, 1e15))
def test_round_trip_through_a_plan(share, amount):
    budget = Budget.parse({"flops": share, "params": f"{amount / 1e9!r}G"})
    again = Budget.parse(budget.to_dict())
    for before, after in zip(budget.limits, again.limits, strict=True):
        assert (after.resource, after.relative) == (before.resource, before.relative)
        assert after.amount == pytest.approx(before.amount, rel=1e-11)
