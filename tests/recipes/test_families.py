"""The recipes on families that cannot be run block by block, and on data that a model does not run on."""

import copy

import pytest
import torch

import pyprune
from pyprune.core.batches import Samples
from pyprune.core.errors import InputError
from pyprune.core.plan import Plan
from pyprune.models.adapter import adapter_for
from pyprune.recovery.refit import refit
from pyprune.testing.models import tiny_model


def samples():
    generator = torch.Generator().manual_seed(0)
    return Samples([{"input_ids": torch.randint(3, 99, (n,), generator=generator)} for n in (9, 12, 7, 11)])


@pytest.mark.parametrize(
    ("variant", "head"),
    [
        ("gpt_neox", "AutoModelForCausalLM"),  # attention and feed-forward side by side
        ("gemma3", "AutoModel"),  # norms behind the projections
        ("opt", "AutoModelForCausalLM"),  # feed-forward on rows of tokens
        ("bart", "AutoModel"),  # two stacks and cross-attention
        ("gpt2", "AutoModelForCausalLM"),  # weights stored the other way round
    ],
)
@pytest.mark.parametrize("recipe", ["surgeon", "kwon", "kprune", "flap"])
def test_every_recipe_prunes_and_tunes(variant, head, recipe):
    model = tiny_model(variant, head)
    result = pyprune.prune(model, {"params": 0.6}, samples(), recipe=recipe)
    assert result.plan.cost(result.anatomy, "params") <= 0.6 * result.anatomy.params()
    if recipe != "flap":
        assert len(result.outcomes) == len(result.anatomy.blocks)
        fitted = [outcome for outcome in result.outcomes if outcome.fitted]
        assert fitted
        assert all(outcome.after <= outcome.before + 1e-5 for outcome in fitted)


def test_passes_fit_a_projection_to_the_teachers():
    """With one block pruned, its projection alone is at fault, and least squares over all rows finds the same."""
    teacher = tiny_model("gpt_neox", dtype=torch.float64)
    anatomy = adapter_for(teacher).anatomy(teacher)
    plan = Plan.keep_all(anatomy)
    plan.kept["layers.1.neurons"] = torch.arange(9)
    student = pyprune.apply(teacher, plan)
    before = copy.deepcopy(student)
    small = adapter_for(student).anatomy(student)
    outcomes = refit(student, small, teacher, anatomy, samples().batches(), damping=1e-9)
    assert [outcome.block for outcome in outcomes] == [g.name for g in anatomy.groups]
    for block in small.blocks[:3]:
        old, new = (m.get_submodule(block.projection).weight for m in (before, student))
        assert float((new - old).norm() / old.norm()) < 1e-4
    path = small.block("layers.1.neurons").projection
    (_, target), (x, found) = (rows_at(model, path) for model in (teacher, student))
    design = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    best = design @ torch.linalg.lstsq(design, target).solution
    missing, least = float((found - target).norm()), float((best - target).norm())
    assert missing == pytest.approx(least, rel=1e-3)
    assert float((rows_at(before, path)[1] - target).norm()) > 1.2 * least


@torch.no_grad()
def rows_at(model, path):
    """All inputs and outputs `[N, *]` of a linear layer over the samples."""
    rows = []
    handle = model.get_submodule(path).register_forward_hook(lambda _, args, y: rows.append((args[0][0], y[0])))
    for row in samples().inputs:
        model(input_ids=row["input_ids"][None])
    handle.remove()
    return torch.cat([x for x, _ in rows]), torch.cat([y for _, y in rows])


@pytest.mark.parametrize("recipe", ["surgeon", "kwon", "kprune", "flap"])
def test_blocks_that_the_data_never_passes_are_named(recipe):
    model = tiny_model("gpt2-cross", "AutoModelForCausalLM")
    with pytest.raises(InputError, match=r"layers.0.cross_heads: the data never passes it"):
        pyprune.prune(model, {"params": 0.6}, samples(), recipe=recipe)


def test_blocks_that_are_not_passed_are_not_tuned():
    model = tiny_model("gpt2-cross", "AutoModelForCausalLM")
    anatomy = adapter_for(model).anatomy(model)
    outcomes = refit(copy.deepcopy(model), anatomy, model, anatomy, samples().batches())
    reasons = {outcome.block: outcome.reason for outcome in outcomes}
    assert reasons["layers.0.cross_heads"] == "the data never passes it"
