"""Hidden widths of networks in stages: masked = sliced = reloaded by another process, and costs are what is counted."""

import copy

import pytest
import torch
from matrix import ROUNDING, check_reload, flops, inputs_of, run, save, weights

import pyprune
from pyprune.capture.masking import masked
from pyprune.core.errors import BudgetError, InputError, MismatchError
from pyprune.core.plan import Plan
from pyprune.core.scores import Scores
from pyprune.importance import CRITERIA
from pyprune.importance.registry import Evidence
from pyprune.models.adapter import adapter_for
from pyprune.models.inputs import example_inputs
from pyprune.slicing.check import max_difference
from pyprune.slicing.slice import slice_
from pyprune.testing.models import random_plan, tiny_model
from pyprune.testing.zoo import ZOO

CLASSIFIER = "AutoModelForImageClassification"
# The stem and the first stage have one width where no shortcut lies between them, as in ResNet-18.
SHARED = {"embedding_size": 8, "downsample_in_first_stage": False}
CASES = {
    **{f"{v}-{head}": (v, head, {}) for v in ("resnet", "convnext") for head in ZOO[v].heads},
    **{v: (v, CLASSIFIER, {}) for v in ("resnet-basic", "resnet-early", "convnext-unscaled")},
    "resnet-shared": ("resnet-basic", CLASSIFIER, SHARED),
    "resnet-no-labels": ("resnet", CLASSIFIER, {"num_labels": 0}),
    "convnext-no-labels": ("convnext", CLASSIFIER, {"num_labels": 0}),
    "resnet-sigmoid": ("resnet", CLASSIFIER, {"hidden_act": "sigmoid"}),  # channels that are gone would be 0.5
}
AXES = ["channels", "hidden"]


def dense_and_anatomy(case, dtype=torch.float64, axes=("hidden",)):
    variant, head, changed = CASES[case]
    model = tiny_model(variant, head, dtype, **changed)
    return model, adapter_for(model), adapter_for(model).anatomy(model, axes=list(axes))


def magnitude(model, anatomy):
    return Scores(CRITERIA["magnitude"].values(Evidence(model, anatomy, None)), {})


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return tmp_path_factory.mktemp("stages")


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    """Checkpoints that transformers loads without pyprune."""
    return tmp_path_factory.mktemp("native")


def test_a_stage_has_one_width_and_the_stem_its_own():
    names = {}
    for case in ("resnet-AutoModel", "resnet-shared", "convnext-AutoModel"):
        _, _, anatomy = dense_and_anatomy(case)
        names[case] = [(width.units.name, width.units.size) for width in anatomy.stage_widths]
    assert names["resnet-AutoModel"] == [("embedder.hidden", 6), ("stages.0.hidden", 8), ("stages.1.hidden", 16)]
    assert names["resnet-shared"] == [("embedder.hidden", 8), ("stages.1.hidden", 16)]
    assert names["convnext-AutoModel"] == [("stages.0.hidden", 8), ("stages.1.hidden", 16)]


@pytest.mark.parametrize("case", CASES)
def test_masked_equals_sliced(case, checkpoints):
    dense, adapter, anatomy = dense_and_anatomy(case)
    inputs = inputs_of(dense)
    whole = run(dense, inputs)
    for emptied in (False, True):
        plan = random_plan(anatomy, seed=3, emptied=emptied)
        plan.kept[anatomy.stage_widths[-1].units.name] = torch.tensor([2, 3, 7, 11, 12])
        with masked(dense, anatomy, plan):
            expected = run(dense, inputs)
        model = slice_(copy.deepcopy(dense), adapter, plan)
        found = run(model, inputs)
        assert max_difference(expected, found, plan) < ROUNDING
        assert max_difference(whole, found, plan) > 1e-6
        assert {g.name: g.size for g in adapter.anatomy(model, axes=["hidden"]).groups} == plan.counts
    save(model, inputs, found, checkpoints / case)
    assert max_difference(whole, run(dense, inputs)) == 0  # the masks are gone
    kept = slice_(copy.deepcopy(dense), adapter, Plan.keep_all(anatomy))
    assert max_difference(whole, run(kept, inputs)) == 0
    assert kept.config.to_dict() == dense.config.to_dict()


@pytest.mark.parametrize("case", CASES)
def test_costs_are_what_is_counted(case):
    """All matrices of the model are those of some channel, those of the stem and of the classifier too."""
    dense, adapter, anatomy = dense_and_anatomy(case, torch.float32)
    plan = random_plan(anatomy, seed=3, emptied=False)
    sliced = slice_(copy.deepcopy(dense), adapter, plan)
    inputs = example_inputs(dense, batch=1)
    assert weights(dense) == anatomy.params()
    assert weights(sliced) == anatomy.params(plan.counts)
    assert flops(dense, inputs) == pytest.approx(anatomy.flops(1), rel=1e-12)
    assert flops(sliced, inputs) == pytest.approx(anatomy.flops(1, plan.counts), rel=1e-12)


def test_stages_of_equal_numbers_are_told_apart():
    variant, head = "resnet-basic", "AutoBackbone"
    model = tiny_model(variant, head, torch.float64, hidden_sizes=[8, 8], out_features=["stage1", "stage2"])
    adapter = adapter_for(model)
    plan = Plan.keep_all(anatomy := adapter.anatomy(model, axes=["hidden"]))
    plan.kept |= {"stages.0.hidden": torch.tensor([0, 1, 5]), "stages.1.hidden": torch.tensor([2, 3, 4])}
    inputs = inputs_of(model)
    with masked(model, anatomy, plan):
        expected = run(model, inputs)
    slice_(model, adapter, plan)
    assert max_difference(expected, run(model, inputs), plan) < ROUNDING
    assert model.channels == [3, 3]


@pytest.mark.parametrize("case", ["resnet-basic", "convnext-unscaled"])
def test_a_narrow_model_is_pruned_again(case, tmp_path):
    model, adapter, anatomy = dense_and_anatomy(case)
    slice_(model, adapter, random_plan(anatomy, seed=1, emptied=False))
    anatomy = adapter.anatomy(model, axes=["hidden"])
    plan = random_plan(anatomy, seed=4, emptied=False)
    inputs = inputs_of(model)
    with masked(model, anatomy, plan):
        expected = run(model, inputs)
    found = run(slice_(model, adapter, plan), inputs)
    assert max_difference(expected, found, plan) < ROUNDING
    model.save_pretrained(tmp_path)
    assert max_difference(found, run(type(model).from_pretrained(tmp_path, dtype=torch.float64), inputs)) < ROUNDING


@pytest.mark.parametrize("case", ["resnet-basic", "convnext-unscaled"])
@pytest.mark.parametrize("axes", [["hidden"], AXES])
def test_all_stages_shrink_in_proportion_under_a_budget(case, axes):
    model, _, anatomy = dense_and_anatomy(case, torch.float32)
    scores = magnitude(model, anatomy)
    plan = pyprune.plan(model, scores, {"flops": 0.5}, axes=axes, recipe="kwon", length=1)
    share = plan.cost(anatomy, "flops") / anatomy.flops(1)
    assert 0.35 < share <= 0.5
    stages = [plan.counts[f"stages.{i}.hidden"] for i in range(2)]
    assert abs(stages[1] - 2 * stages[0]) <= 1
    if axes == ["hidden"]:
        assert all(plan.counts[block.units.name] == block.units.size for block in anatomy.blocks)
        assert stages[0] < 8
    best = scores.values["stages.1.hidden"].argsort(descending=True)[: stages[1]].sort().values
    assert torch.equal(plan.kept["stages.1.hidden"], best)
    rounded = pyprune.plan(model, scores, {"flops": 0.5}, axes=axes, recipe="kwon", length=1, multiple_of=2)
    assert all(count % 2 == 0 or count == rounded.sizes[name] for name, count in rounded.counts.items())


@pytest.mark.parametrize("case", ["resnet-AutoModel", "resnet-basic", "resnet-shared", "convnext-unscaled"])
def test_uniform_plans_load_without_pyprune(case, native):
    model, _, anatomy = dense_and_anatomy(case, torch.float32)
    scores = magnitude(model, anatomy)
    asked = {"axes": AXES, "recipe": "kwon", "length": 1, "deploy": "uniform"}
    plan = pyprune.plan(model, scores, {"flops": 0.6}, **asked)
    assert plan.cost(anatomy, "flops") <= 0.6 * anatomy.flops(1)
    pruned = pyprune.apply(model, plan)
    last = plan.counts["stages.1.hidden"]
    assert pruned.config.hidden_sizes[-1] == last < 16
    assert not hasattr(pruned.config, "pruned_groups")
    assert all(check.equal for check in pyprune.verify_model(model, plan, pruned))
    inputs = inputs_of(pruned)
    save(pruned, inputs, run(pruned, inputs), native / case)


def test_another_process_reloads_all_of_them(checkpoints, native):
    check_reload(checkpoints, native)


def test_a_width_of_one_stage_alone_is_not_uniform():
    model, _, anatomy = dense_and_anatomy("resnet-basic", torch.float32)
    scores = magnitude(model, anatomy)
    asked = {"recipe": "kwon", "length": 1, "deploy": "uniform"}
    with pytest.raises(BudgetError, match="cannot be met"):
        pyprune.plan(model, scores, {"flops": 0.3}, axes=["hidden"], **asked)
    plan = Plan.keep_all(anatomy)
    plan.kept["stages.0.hidden"] = torch.arange(4)
    plan.meta["uniform"] = True
    with pytest.raises(InputError, match="cannot say its widths"):
        pyprune.apply(model, plan)


def test_what_cannot_be_asked_is_said(tmp_path):
    model, adapter, anatomy = dense_and_anatomy("convnext-unscaled")
    with pytest.raises(InputError, match="not possible for the axis hidden"):
        anatomy.need_blocks("criterion='fisher'")
    plan = Plan.keep_all(anatomy)
    plan.kept["stages.0.hidden"] = torch.tensor([], dtype=torch.int64)
    with pytest.raises(InputError, match=r"stages\.0\.hidden must keep at least 1 of 8"):
        slice_(model, adapter, plan)
    model.config.pruned_groups = {"stages.0.hidden": 9}
    with pytest.raises(MismatchError, match="has 8 units in the model, not 9"):
        type(model)(model.config)
