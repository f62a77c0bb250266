"""The recipe of Kwon et al.: which stage runs on what."""

import copy
import math

import pytest
import torch

from pyprune.capture.collect import collect
from pyprune.capture.cotangent import EmbeddingProbe, NegativeLogLikelihood
from pyprune.core.batches import Samples
from pyprune.core.budget import Budget
from pyprune.core.errors import InputError
from pyprune.core.stages import Stages
from pyprune.importance.fisher import per_batch, per_sample
from pyprune.models.adapter import adapter_for
from pyprune.recipes import RECIPES, Kwon, Surgeon, kwon
from pyprune.recipes.cotangents import choose_cotangent
from pyprune.search import rearrange, search
from pyprune.slicing.slice import slice_
from pyprune.testing import numerics
from pyprune.testing.models import VARIANTS, heads, tiny_model

QUIET = Stages(quiet=True)
HALF = Budget.parse({"flops": 0.5})
LENGTHS = (12, 7, 12, 9, 12, 12, 9, 7)


def samples_of(labels=None):
    generator = torch.Generator().manual_seed(0)
    return Samples([{"input_ids": torch.randint(3, 99, (n,), generator=generator)} for n in LENGTHS], labels)


def anatomy_of(model):
    return adapter_for(model).anatomy(model)


def scored(model, recipe, samples=None, seed=0):
    return recipe.score(model, anatomy_of(model), samples or samples_of(), seed, QUIET)


CLASSES = [torch.tensor(s % 2) for s in range(len(LENGTHS))]


@pytest.mark.parametrize(
    ("head", "settings", "cotangent", "draws"),
    [
        ("AutoModel", {}, "embedding", 2),
        ("AutoModel", {"draws": 5}, "embedding", 5),
        ("AutoModelForSequenceClassification", {}, "sampled", 2),
        ("AutoModelForSequenceClassification", {"cotangent": "labels"}, "labels", 1),
        ("AutoModelForSequenceClassification", {"cotangent": "labels", "draws": 3}, "labels", 3),
    ],
)
@pytest.mark.parametrize(("criterion", "fisher"), [("fisher", per_sample), ("fisher_batch", per_batch)])
def test_scores_are_the_criterion_of_the_collected_statistics(head, settings, cotangent, draws, criterion, fisher):
    model, samples = tiny_model("bert", head), samples_of(CLASSES)
    scores = scored(model, Kwon(criterion=criterion, **settings), samples, seed=4)
    value = {
        "embedding": EmbeddingProbe(4),
        "sampled": NegativeLogLikelihood("sampled", False, model.config, 4),
        "labels": NegativeLogLikelihood("given", False, model.config, 4),
    }[cotangent]
    expected = collect(model, anatomy_of(model), samples.batches(), value, samples.lengths, draws)
    for name, found in scores.values.items():
        numerics.exact(scores.statistics.gradients[name], expected.gradients[name])
        numerics.exact(found, fisher(expected)[name])
    assert scores.meta == {
        "criterion": criterion,
        "cotangent": cotangent,
        "draws": draws,
        "samples": 8,
        "seed": 4,
        "mean_length": 10.0,
    }


@pytest.mark.parametrize("criterion", ["magnitude", "random"])
def test_criteria_without_data_collect_nothing(criterion):
    scores = scored(tiny_model("bert"), Kwon(criterion=criterion))
    assert scores.statistics is None
    assert scores.meta["mean_length"] == 10.0


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_head_gets_the_cotangent_that_fits(variant):
    for head in heads(variant):
        model = tiny_model(variant, head)
        cotangent, name, _ = choose_cotangent(model, "auto", None, 0, "sum")
        assert name == ("embedding" if head == "AutoModel" else "sampled")
        if head != "AutoModel":
            assert cotangent.causal == (head == "AutoModelForCausalLM"), head


@pytest.mark.parametrize("name", ["labels", "sampled"])
def test_models_without_logits_need_an_embedding(name):
    with pytest.raises(InputError, match=f"'{name}' needs a model with logits; BertModel has none"):
        scored(tiny_model("bert"), Kwon(cotangent=name))


def test_scoring_in_another_dtype_leaves_the_model_in_its_own():
    model = tiny_model("bert", dtype=torch.bfloat16)
    narrow, wide = (scored(model, Kwon(score_dtype=dtype)) for dtype in (None, torch.float64))
    assert model.dtype == torch.bfloat16
    truth = scored(copy.deepcopy(model).double(), Kwon())
    for name in truth.values:
        numerics.exact(wide.values[name], truth.values[name])
        assert not torch.equal(narrow.values[name], truth.values[name])


@pytest.mark.parametrize(
    ("settings", "rearranged"),
    [
        ({"tuning": "mask"}, True),
        ({"tuning": "none"}, True),
        ({"tuning": "refit"}, False),
        ({"tuning": "refit", "rearrange": True}, True),
        ({"tuning": "mask", "rearrange": False}, False),
        ({"tuning": "mask", "criterion": "magnitude"}, False),
    ],
)
def test_plans_are_searched_and_rearranged_where_no_refit_follows(settings, rearranged):
    model, recipe = tiny_model("bert"), Kwon(**settings)
    scores = scored(model, recipe)
    plan = recipe.plan(scores, anatomy_of(model), HALF, 10.0, floor=1)
    searched = search(scores, anatomy_of(model), HALF, 10.0, floor=1)
    expected = rearrange(searched, scores.statistics) if rearranged else searched
    assert plan.meta.get("rearranged", False) is rearranged
    for name, index in expected.kept.items():
        numerics.exact(plan.kept[name], index)


def test_mask_tuning_follows_the_model_at_the_square_root_of_the_budget(monkeypatch):
    model, recipe = tiny_model("bert"), Kwon(tuning="mask")
    adapter, anatomy, scores = adapter_for(model), anatomy_of(model), scored(model, recipe)
    plan = recipe.plan(scores, anatomy, HALF, 10.0)
    student, seen = slice_(copy.deepcopy(model), adapter, plan), {}

    def spy(student, student_anatomy, teacher, teacher_anatomy, batches, stages):
        seen["counts"] = {g.name: g.size for g in teacher_anatomy.groups}
        seen["teacher"] = teacher
        return []

    monkeypatch.setattr(kwon, "tune_masks", spy)
    recipe.tune(student, model, adapter, plan, scores, samples_of(), QUIET)
    share = math.sqrt(plan.cost(anatomy, "flops") / anatomy.flops(10.0))
    assert seen["counts"] == search(scores, anatomy, {"flops": share}, 10.0).counts
    assert anatomy.flops(10.0, seen["counts"]) > plan.cost(anatomy, "flops")
    assert anatomy_of(model) == anatomy
    with pytest.raises(InputError, match="needs the scores"):
        recipe.tune(student, model, adapter, plan, None, samples_of(), QUIET)


@pytest.mark.parametrize(
    "recipe", [Kwon(), Kwon(tuning="mask"), Kwon(tuning="none"), Surgeon(), Surgeon(tuning="none")]
)
@pytest.mark.parametrize(
    ("variant", "head"),
    [("bert", "AutoModel"), ("distilbert", "AutoModelForTokenClassification"), ("llama", "AutoModelForCausalLM")],
)
def test_from_scores_to_a_tuned_model(recipe, variant, head):
    model = tiny_model(variant, head)
    before = copy.deepcopy(model.state_dict())
    adapter, anatomy = adapter_for(model), anatomy_of(model)
    scores = scored(model, recipe)
    plan = recipe.plan(scores, anatomy, HALF, 10.0)
    assert 0.4 * anatomy.flops(10.0) < plan.cost(anatomy, "flops") <= 0.5 * anatomy.flops(10.0)
    student = slice_(copy.deepcopy(model), adapter, plan)
    outcomes = recipe.tune(student, model, adapter, plan, scores, samples_of(), QUIET)
    assert len(outcomes) == (0 if recipe.tuning == "none" else len(anatomy.blocks))
    assert all(outcome.fitted or outcome.reason for outcome in outcomes)
    for name, value in model.state_dict().items():
        numerics.exact(value, before[name])


@pytest.mark.parametrize("recipe", ["kwon", "surgeon"])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tuning": "lora"}, "tuning='lora'"),
        ({"cotangent": "loss"}, "cotangent='loss'"),
        ({"draws": 0}, "draws=0"),
        ({"draws": -2}, "draws=-2"),
        ({"tokens": "max"}, "tokens='max'"),
        ({"damping": 0.0}, "damping=0.0"),
        ({"damping": math.nan}, "damping=nan"),
    ],
)
def test_settings_are_refused_at_once(recipe, settings, message):
    with pytest.raises(InputError, match=message):
        RECIPES[recipe](**settings)


def test_an_unknown_criterion_is_refused_at_once():
    with pytest.raises(InputError, match="unknown criterion 'wanda'"):
        Kwon(criterion="wanda")
