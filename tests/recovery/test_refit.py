"""Refit: torch.linalg.lstsq block by block, in every family; what stays as it was."""

import copy

import pytest
import torch
from explicit import anatomy_of, distance, problem, pruned_pair, samples_of

from pyprune.core.errors import InputError, MismatchError
from pyprune.core.plan import Plan
from pyprune.models.adapter import adapter_for
from pyprune.recovery.refit import refit
from pyprune.slicing.slice import slice_
from pyprune.testing import numerics
from pyprune.testing.models import tiny_model

FAMILIES = ("bert", "roberta", "distilbert", "llama", "llama-biased", "mistral", "qwen2", "qwen3")


def refitted(student, teacher, samples, damping=1e-13, **batching):
    batches = samples.batches(**batching)
    return refit(student, anatomy_of(student), teacher, anatomy_of(teacher), batches, damping)


@torch.no_grad()
def by_lstsq(student, teacher, samples):
    """The same with whole design matrices: `[X 1] -> target` where there is a bias, `X -> target` where not."""
    for index, block in enumerate(anatomy_of(student).blocks):
        projection = student.get_submodule(block.projection)
        x, target = problem(student, teacher, index, samples)
        if projection.bias is None:
            projection.weight.copy_(torch.linalg.lstsq(x, target).solution.T)
            continue
        solution = torch.linalg.lstsq(torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1), target).solution
        projection.weight.copy_(solution[:-1].T)
        projection.bias.copy_(solution[-1])
    return student


@pytest.mark.parametrize("variant", FAMILIES)
@pytest.mark.parametrize("padding", [0.0, 1.0])
def test_equals_least_squares(variant, padding):
    teacher, student = pruned_pair(variant)
    samples = samples_of()
    expected = by_lstsq(copy.deepcopy(student), teacher, samples)
    outcomes = refitted(student, teacher, samples, max_padding=padding)
    assert all(outcome.fitted for outcome in outcomes)
    for found, truth in zip(student.parameters(), expected.parameters(), strict=True):
        if found.numel():
            # Normal equations square the condition number: float32's rounding is what is left of float64's.
            numerics.ratio(found.detach(), truth.detach(), torch.float32)


@pytest.mark.parametrize("variant", FAMILIES)
def test_every_block_gets_closer_and_so_does_the_model(variant):
    teacher, student = pruned_pair(variant, torch.float32, emptied=True)
    samples, unseen = samples_of(), samples_of(seed=9)
    before, before_unseen = distance(student, teacher, samples), distance(student, teacher, unseen)
    outcomes = refitted(student, teacher, samples, damping=1e-2)
    assert [outcome.block for outcome in outcomes] == [g.name for g in anatomy_of(student).groups]
    for outcome in outcomes:
        if outcome.fitted:
            assert 0 <= outcome.after < outcome.before
    assert distance(student, teacher, samples) < before
    assert distance(student, teacher, unseen) < before_unseen


@pytest.mark.parametrize("variant", ["bert", "llama"])
def test_the_reported_shares_are_those_of_the_data(variant):
    teacher, student = pruned_pair(variant)
    samples = samples_of()
    x, target = problem(student, teacher, 0, samples)
    projection = student.get_submodule(anatomy_of(student).blocks[0].projection)
    with torch.no_grad():
        before = (projection(x) - target).square().sum() / target.square().sum()
        outcome, *_ = refitted(student, teacher, samples, damping=1e-2)
        after = (projection(x) - target).square().sum() / target.square().sum()
    assert outcome.before == pytest.approx(float(before), rel=1e-9)
    assert outcome.after == pytest.approx(float(after), rel=1e-9)


def test_damping_holds_the_weights_where_they_were():
    teacher, student = pruned_pair("bert")
    first = student.get_submodule(anatomy_of(student).blocks[0].projection)
    old, distances = first.weight.detach().clone(), []
    for damping in (1e-6, 1e-1, 1e2, 1e12):
        other = copy.deepcopy(student)
        refitted(other, teacher, samples_of(), damping)
        weight = other.get_submodule(anatomy_of(other).blocks[0].projection).weight.detach()
        distances.append(float((weight - old).norm()))
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 1e-9 * float(old.norm()) < distances[0]


@pytest.mark.parametrize("variant", ["bert", "llama"])
def test_a_plan_that_keeps_all_changes_nothing(variant):
    teacher = tiny_model(variant, dtype=torch.float64)
    plan = Plan.keep_all(anatomy_of(teacher))
    student = slice_(copy.deepcopy(teacher), adapter_for(teacher), plan)
    refitted(student, teacher, samples_of(), damping=1e-2)
    ids = samples_of(seed=5).inputs[0]["input_ids"][None]
    with torch.no_grad():
        numerics.ratio(student(ids).last_hidden_state, teacher(ids).last_hidden_state, torch.float32)


def test_an_emptied_block_keeps_a_fitted_bias():
    teacher, student = pruned_pair("bert", emptied=True)
    samples = samples_of()
    block = anatomy_of(student).blocks[0]
    assert block.units.size == 0
    _, target = problem(student, teacher, 0, samples)
    outcome, *_ = refitted(student, teacher, samples)
    projection = student.get_submodule(block.projection)
    assert projection.weight.shape == (32, 0)
    numerics.ratio(projection.bias.detach(), target.mean(0))
    assert outcome.fitted
    assert outcome.after < outcome.before


def test_an_emptied_block_without_a_bias_is_reported_and_later_blocks_are_fitted():
    teacher, student = pruned_pair("llama", emptied=True)
    outcomes = refitted(student, teacher, samples_of(), damping=1e-2)
    assert [outcome.fitted for outcome in outcomes] == [i not in (0, 3) for i in range(6)]
    assert {outcome.reason for outcome in outcomes if not outcome.fitted} == {"no units and no bias"}


def test_narrow_types_stay_narrow():
    teacher, student = pruned_pair("llama", torch.bfloat16)
    samples = samples_of()
    before = distance(student, teacher, samples)
    outcomes = refitted(student, teacher, samples, damping=1e-2)
    assert all(outcome.fitted for outcome in outcomes)
    assert {p.dtype for p in student.parameters()} == {torch.bfloat16}
    assert distance(student, teacher, samples) < before


def test_one_token_is_too_little():
    teacher, student = pruned_pair("bert")
    before = copy.deepcopy(student.state_dict())
    outcomes = refitted(student, teacher, samples_of(lengths=(1,)))
    assert not any(outcome.fitted for outcome in outcomes)
    assert "more data" in outcomes[0].reason
    for name, value in student.state_dict().items():
        numerics.exact(value, before[name])


def test_models_in_training_are_fitted_without_dropout_and_stay_in_training():
    teacher, student = pruned_pair("bert")
    expected = copy.deepcopy(student)
    refitted(expected, teacher, samples_of(), 1e-2)
    assert teacher.config.hidden_dropout_prob > 0
    refitted(student.train(), teacher.train(), samples_of(), 1e-2)
    assert student.training
    assert teacher.training
    for found, truth in zip(student.parameters(), expected.parameters(), strict=True):
        numerics.exact(found.detach(), truth.detach())


def test_the_teacher_and_everything_but_the_projections_stay():
    teacher, student = pruned_pair("bert")
    projections = {b.projection for b in anatomy_of(student).blocks}
    before = [copy.deepcopy(m.state_dict()) for m in (teacher, student)]
    refitted(student, teacher, samples_of(), 1e-2)
    for name, value in teacher.state_dict().items():
        numerics.exact(value, before[0][name])
    for name, value in student.state_dict().items():
        same = torch.equal(value, before[1][name])
        assert same is (name.rsplit(".", 1)[0] not in projections), name


@pytest.mark.parametrize("damping", [0.0, -1.0, float("nan")])
def test_damping_is_checked(damping):
    teacher, student = pruned_pair("bert")
    with pytest.raises(InputError, match="damping="):
        refitted(student, teacher, samples_of(lengths=(5,)), damping)


def test_models_of_different_depth_are_refused():
    _, student = pruned_pair("bert")
    with pytest.raises(MismatchError, match="different numbers of blocks"):
        refitted(student, tiny_model("bert", num_hidden_layers=2), samples_of(lengths=(5,)))
