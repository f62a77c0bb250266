"""One-shot recipes: every criterion through scoring, a file, a plan and tuning."""

import copy
from dataclasses import replace

import pytest
import torch

import pyprune
from pyprune.capture.replay import reach
from pyprune.core.batches import Samples
from pyprune.core.budget import Budget
from pyprune.core.errors import InputError
from pyprune.core.layers import matrix
from pyprune.core.scores import Scores
from pyprune.core.stages import Stages
from pyprune.importance import CRITERIA
from pyprune.importance.cost_curve import removal
from pyprune.models.adapter import adapter_for
from pyprune.recipes import RECIPES, Flap, Kwon, LLMPruner, Surgeon
from pyprune.slicing.slice import slice_
from pyprune.testing import numerics
from pyprune.testing.models import tiny_model

QUIET = Stages(quiet=True)
HALF = Budget.parse({"flops": 0.5})


def samples_of(count=6):
    generator = torch.Generator().manual_seed(0)
    return Samples([{"input_ids": torch.randint(3, 99, (7 + i % 3,), generator=generator)} for i in range(count)])


def prepared(variant="bert"):
    model = tiny_model(variant)
    adapter = adapter_for(model)
    return model, adapter, adapter.anatomy(model)


@pytest.mark.parametrize("criterion", sorted(CRITERIA))
def test_scores_survive_a_file_and_meet_the_budget(criterion, tmp_path):
    model, _, anatomy = prepared()
    recipe = LLMPruner(criterion=criterion)
    scores = recipe.score(model, anatomy, samples_of(), 3, QUIET)
    scores.save(tmp_path / "scores.safetensors")
    loaded = Scores.load(tmp_path / "scores.safetensors")
    plans = [recipe.plan(s, anatomy, HALF, 10.0) for s in (scores, loaded)]
    for name in plans[0].kept:
        assert torch.equal(plans[0].kept[name], plans[1].kept[name])
    assert plans[0].cost(anatomy, "flops") <= 0.5 * anatomy.flops(10.0)
    needs = CRITERIA[criterion].needs
    assert (loaded.statistics is None) == (needs == "nothing")
    if needs == "channels":
        for name, totals in scores.statistics.channels.items():
            assert loaded.statistics.channels[name].count == totals.count
            numerics.exact(loaded.statistics.channels[name].m2, totals.m2)
    if needs == "weights":
        for name, values in scores.statistics.weights.items():
            numerics.exact(loaded.statistics.weights[name], values)


def test_forward_only_criteria_do_not_differentiate(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("differentiated")

    monkeypatch.setattr(torch.Tensor, "backward", refuse)
    model, _, anatomy = prepared()
    for criterion in ("flap", "wanda_sp", "minitron"):
        Flap(criterion=criterion).score(model, anatomy, samples_of(), 0, QUIET)
    with pytest.raises(AssertionError, match="differentiated"):
        LLMPruner().score(model, anatomy, samples_of(), 0, QUIET)


@pytest.mark.parametrize("with_scores", [True, False])
def test_bias_compensation_takes_the_means_of_the_scores_or_its_own(with_scores):
    model, adapter, anatomy = prepared()
    recipe, samples = Flap(), samples_of()
    scores = recipe.score(model, anatomy, samples, 0, QUIET)
    plan = recipe.plan(scores, anatomy, HALF, 10.0)
    students = [slice_(copy.deepcopy(model), adapter, plan) for _ in range(2)]
    outcomes = recipe.tune(students[0], model, adapter, plan, scores if with_scores else None, samples, QUIET)
    recipe.tune(students[1], model, adapter, plan, scores, samples, QUIET)
    assert any(o.fitted for o in outcomes)
    for a, b in zip(students[0].parameters(), students[1].parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_bias_compensation_helps():
    """Fidelity on the calibration data itself: nearer to the dense model than the same units without it."""
    model, adapter, anatomy = prepared()
    samples = samples_of(12)
    scores = Flap().score(model, anatomy, samples, 0, QUIET)
    plan = Flap().plan(scores, anatomy, Budget.parse({"flops": 0.8}), 10.0)
    distances = []
    for tuning in ("none", "bias"):
        student = slice_(copy.deepcopy(model), adapter, plan)
        Flap(tuning=tuning).tune(student, model, adapter, plan, scores, samples, QUIET)
        with torch.no_grad():
            pairs = [(model(r["input_ids"][None])[0], student(r["input_ids"][None])[0]) for r in samples.inputs]
        distances.append(sum(float((a - b).square().sum()) for a, b in pairs))
    assert distances[1] < distances[0]


@pytest.mark.parametrize("recipe", ["flap", "llm_pruner"])
def test_through_the_public_function(recipe, tmp_path):
    model = tiny_model("bert")
    rows = [row["input_ids"] for row in samples_of().inputs]
    data = [{"input_ids": row} for row in rows]
    result = pyprune.prune(model, {"params": 0.6}, data=data, recipe=recipe, quiet=True)
    assert result.plan.cost(result.anatomy, "params") <= 0.6 * result.anatomy.params()
    assert result.scores.meta["criterion"] == RECIPES[recipe]().criterion


@pytest.mark.parametrize("recipe", [Flap, LLMPruner])
def test_unknown_settings(recipe):
    with pytest.raises(InputError, match="tuning='mask' must be one of refit, bias, none"):
        recipe(tuning="mask")
    with pytest.raises(InputError, match="unknown criterion 'wanda'"):
        recipe(criterion="wanda")


@pytest.mark.parametrize("recipe", [Flap, Kwon, LLMPruner, Surgeon])
def test_a_dtype_of_no_scoring_pass_is_refused(recipe):
    recipe(score_dtype="bfloat16")
    for wrong in ("int8", torch.int8, "cpu"):
        with pytest.raises(InputError, match=r"score_dtype='.*': choose float64, float32, bfloat16, float16"):
            recipe(score_dtype=wrong)


@pytest.mark.parametrize("recipe", ["flap", "surgeon"])
def test_the_scoring_pass_takes_a_dtype_or_its_name(recipe):
    model = tiny_model("bert")
    data = [{"input_ids": row["input_ids"]} for row in samples_of().inputs]
    named, typed = (pyprune.score(model, data, recipe=recipe, score_dtype=d) for d in ("float64", torch.float64))
    for name, values in named.values.items():
        numerics.exact(values, typed.values[name])


@pytest.mark.parametrize("criterion", ["taylor", "taylor_abs", "taylor_mix"])
def test_first_order_scores_are_of_labels_where_there_are_any(criterion):
    """The mean gradient of labels that the model draws is 0: other seeds would choose other units."""
    model = tiny_model("llama", "AutoModelForCausalLM")
    anatomy, recipe = adapter_for(model).anatomy(model), LLMPruner(criterion=criterion)
    first, other = (recipe.score(model, anatomy, samples_of(), seed, QUIET) for seed in (0, 1))
    assert first.meta["cotangent"] == "labels"
    assert "notices" not in first.meta
    for name, values in first.values.items():
        numerics.exact(values, other.values[name])


def test_first_order_scores_without_labels_are_told_to_be_chance():
    model, _, anatomy = prepared()
    assert (
        "taylor_abs: random cotangents (embedding)"
        in LLMPruner().score(model, anatomy, samples_of(), 0, QUIET).meta["notices"][0]
    )
    squares = LLMPruner(criterion="taylor_sq").score(model, anatomy, samples_of(), 0, QUIET)
    assert "notices" not in squares.meta
    data = [{"input_ids": row["input_ids"]} for row in samples_of().inputs]
    result = pyprune.prune(model, {"flops": 0.5}, data, recipe="llm_pruner", dry_run=True)
    assert any("taylor_abs" in notice for notice in result.notices)
    labelled = Samples(samples_of(4).inputs, [torch.tensor(i % 2) for i in range(4)])
    classifier = tiny_model("bert", "AutoModelForSequenceClassification")
    assert pyprune.score(classifier, labelled, recipe="llm_pruner").meta["cotangent"] == "labels"


@pytest.mark.parametrize(
    "recipe",
    [
        pyprune.Kwon(tuning="none", calibrate=True),
        pyprune.LFPR(calibrate=True),
        pyprune.Kwon(calibrate=True, damping=0.1),
    ],
)
@torch.no_grad()
def test_calibrated_scores_add_up_to_what_is_lost_with_a_block(recipe):
    model = tiny_model("bert", "AutoModelForSequenceClassification", torch.float64)
    anatomy = adapter_for(model).anatomy(model)
    generator = torch.Generator().manual_seed(0)
    samples = Samples([{"input_ids": torch.randint(3, 99, (n,), generator=generator)} for n in (9, 5, 7)])
    scores = recipe.score(model, anatomy, samples, 0, Stages(True))
    plain = replace(recipe, calibrate=False).score(model, anatomy, samples, 0, Stages(True))
    for block in anatomy.blocks:
        unit, highest, projection = block.units, 0.0, model.get_submodule(block.projection)
        gram = None
        if recipe.tuning == "refit":
            reads = [reach(model, block.projection, batch)[0].flatten(0, 1) for batch in samples.batches()]
            gram = torch.cat(reads).T @ torch.cat(reads)
        curve = removal(matrix(projection), plain.values[unit.name], unit.width, gram, recipe.damping)
        order = plain.values[unit.name].argsort(stable=True)
        assert torch.equal(scores.values[unit.name].argsort(stable=True), order)
        for change in curve.updates:  # a part of the block may cost more than the whole: curves do not fall
            without, lost = copy.deepcopy(model), 0.0
            matrix(without.get_submodule(block.projection)).add_(change.T)
            for batch in samples.batches():
                dense, says = (m(**batch.inputs).logits.log_softmax(-1) for m in (model, without))
                lost += float((dense.exp() * (dense - says)).sum())
            highest = max(highest, lost)
        assert float(scores.values[unit.name].sum()) == pytest.approx(highest, rel=1e-6)
    assert scores.meta["calibrate"]


def test_what_is_no_projection_cannot_be_calibrated():
    model = tiny_model("bert")
    anatomy = adapter_for(model).anatomy(model, ("layers",))
    samples = Samples([{"input_ids": torch.arange(3, 9)}])
    with pytest.raises(InputError, match="calibrate=True: not possible for the axis layers"):
        pyprune.Kwon(calibrate=True).score(model, anatomy, samples, 0, Stages(True))
