"""Channels of convolutional networks: shared weights are counted once, and what has no linear layers is refused."""

import copy

import pytest
import torch

from pyprune.capture.masking import masked
from pyprune.core.anatomy import Anatomy
from pyprune.core.errors import InputError
from pyprune.importance import CRITERIA
from pyprune.importance.registry import Evidence
from pyprune.models.adapter import adapter_for
from pyprune.models.inputs import example_inputs
from pyprune.slicing.check import max_difference
from pyprune.slicing.slice import slice_
from pyprune.testing.models import random_plan, tiny_model
from pyprune.verification import verify_model

CNNS = ("resnet", "resnet-basic", "convnext")


@torch.no_grad()
def run(model):
    return model(**{k: v.to(model.dtype) for k, v in example_inputs(model).items()})


def test_groups_lie_between_the_convolutions_of_a_layer():
    anatomy = adapter_for(model := tiny_model("resnet")).anatomy(model)
    first, second, *_ = anatomy.groups
    assert (first.name, second.name) == ("layers.0.0.reduced_channels", "layers.0.0.channels")
    assert (first.size, second.size) == (2, 2)
    assert {g.axis for g in anatomy.groups} == {"channels"}
    # 6 inputs of a 1x1 and half of 2 outputs of a 3x3 convolution; the other half of these and 8 outputs of a 1x1.
    assert (first.cost.params, second.cost.params) == (6 + 9, 9 + 8)
    assert anatomy.params({g.name: int(g is first or g is second) for g in anatomy.groups}) == 6 + 9 + 8
    positions = 11 * 11  # 42 pixels, halved twice
    assert Anatomy("", (), anatomy.blocks[:2]).flops(1) == 2 * positions * (2 * 6 + 2 * 2 * 9 + 2 * 8)


def test_running_statistics_are_cut_along():
    model = tiny_model("resnet-basic")
    adapter = adapter_for(model)
    plan = random_plan(adapter.anatomy(model))
    norm = model.encoder.stages[0].layers[0].layer[0].normalization
    mean, kept = norm.running_mean.clone(), plan.kept["layers.0.0.channels"]
    slice_(model, adapter, plan)
    assert torch.equal(norm.running_mean, mean[kept])
    assert norm.num_features == len(norm.running_var) == len(kept)


@pytest.mark.parametrize("variant", CNNS)
def test_a_pruned_model_is_pruned_again_and_copied(variant):
    model = tiny_model(variant, dtype=torch.float64)
    adapter = adapter_for(model)
    slice_(model, adapter, random_plan(adapter.anatomy(model)))
    anatomy = adapter.anatomy(model)
    plan = random_plan(anatomy, seed=2)
    with masked(model, anatomy, plan):
        expected = run(model)
    found = run(slice_(model, adapter, plan))
    assert max_difference(expected, found) < 1e-10
    assert max_difference(found, run(copy.deepcopy(model))) == 0


@pytest.mark.parametrize("variant", CNNS)
def test_verify_proves_them(variant):
    assert all(check.equal for check in verify_model(tiny_model(variant)))


def test_magnitude_scores_channels():
    model = tiny_model("resnet-basic")
    anatomy = adapter_for(model).anatomy(model)
    scores = CRITERIA["magnitude"].values(Evidence(model, anatomy, None, 0))
    one, two = (block.convolution.weight.double() for block in model.encoder.stages[0].layers[0].layer)
    expected = one.square().sum((1, 2, 3)) + two.square().sum((0, 2, 3))
    torch.testing.assert_close(scores["layers.0.0.channels"], expected.detach())


def test_what_needs_linear_layers_is_refused():
    model = tiny_model("resnet")
    with pytest.raises(InputError, match=r"statistics: not possible for layers.0.0.reduced_channels, since its chann"):
        adapter_for(model).anatomy(model).need_projections("statistics")
