"""Plans over layers and hidden width beside other axes: against every plan there is, and what they may not do."""

import itertools

import pytest
import torch

from pyprune.core.budget import Budget
from pyprune.core.errors import BudgetError, InputError
from pyprune.core.limits import floors
from pyprune.core.plan import Plan
from pyprune.core.scores import Scores
from pyprune.models.adapter import adapter_for
from pyprune.search import search, search_jointly
from pyprune.testing.models import tiny_model

LENGTH = 7.0


def problem(axes, **overrides):
    small = {"num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 3}
    model = tiny_model("bert", **{**small, **overrides})
    anatomy = adapter_for(model).anatomy(model, axes)
    generator = torch.Generator().manual_seed(4)
    values = {g.name: torch.rand(g.size, generator=generator, dtype=torch.float64) for g in anatomy.groups}
    return anatomy, Scores(values)


def found(anatomy, scores, budget, axes, multiple_of=1, floor=0):
    def find(remaining, absolute, least):
        return search(scores, remaining, absolute, LENGTH, floor=least, multiple_of=multiple_of)

    least = floors(anatomy, floor, axes=axes, multiple_of=multiple_of)
    return search_jointly(scores, anatomy, Budget.parse(budget), LENGTH, least, find, multiple_of)


def value(plan, anatomy, scores):
    lost = anatomy.lost_layers(plan.kept)
    gone = {block.units.name for block in anatomy.blocks if block.layer_path in lost}
    return sum(scores.values[name][units].sum().item() for name, units in plan.kept.items() if name not in gone)


def every_plan(anatomy, scores, axes):
    """Best units first in every group that may lose some: no better plan keeps as many."""
    choices = []
    for g in anatomy.groups:
        order = scores.values[g.name].argsort(descending=True)
        sizes = range(g.least, g.size + 1) if g.axis in axes else [g.size]
        choices.append([(g.name, order[:size]) for size in sizes])
    for kept in itertools.product(*choices):
        yield Plan(dict(kept), {g.name: g.size for g in anatomy.groups}, LENGTH)


@pytest.mark.parametrize("resource", ["flops", "params"])
@pytest.mark.parametrize("share", [0.3, 0.55, 0.8, 1.0])
@pytest.mark.parametrize("axes", [["hidden"], ["layers"], ["neurons", "hidden"], ["heads", "layers", "hidden"]])
def test_no_plan_is_better(axes, share, resource):
    anatomy, scores = problem(axes)
    limit = share * Plan.keep_all(anatomy, LENGTH).cost(anatomy, resource) * (1 + 1e-9)
    others = [p for p in every_plan(anatomy, scores, axes) if p.cost(anatomy, resource) <= limit]
    if not others:
        with pytest.raises(BudgetError, match="cannot be met by the axes that may be cut"):
            found(anatomy, scores, {resource: share}, axes)
        return
    plan = found(anatomy, scores, {resource: share}, axes)
    assert plan.cost(anatomy, resource) <= limit
    best = max(value(other, anatomy, scores) for other in others)
    assert value(plan, anatomy, scores) == pytest.approx(best, rel=1e-12)


def test_widths_are_multiples_or_dense():
    anatomy, scores = problem(["hidden", "neurons"], hidden_size=24, intermediate_size=12)
    plan = found(anatomy, scores, {"flops": 0.5}, ["hidden", "neurons"], multiple_of=4)
    assert plan.counts["hidden"] % 4 == 0
    assert all(plan.counts[g.name] % 4 == 0 for g in anatomy.groups if g.axis == "neurons")


def test_floors_of_width_and_layers_hold():
    anatomy, scores = problem(["hidden", "layers", "neurons"])
    plan = found(anatomy, scores, {"flops": 0.9}, ["hidden", "layers", "neurons"], floor={"hidden": 8, "layers": 2})
    assert (plan.counts["hidden"], plan.counts["layers"]) == (8, 2)


def test_what_cannot_be_planned_is_said():
    anatomy, scores = problem(["layers"])
    with pytest.raises(InputError, match="scores: none for layers"):
        found(anatomy, Scores({n: v for n, v in scores.values.items() if n != "layers"}), {"flops": 0.6}, ["layers"])
    with pytest.raises(InputError, match="the axis layers takes from every block"):
        floors(anatomy, keep=["layers.0.*"], axes=["layers"])
