"""Bias compensation keeps the mean of what a block puts out."""

import copy

import pytest
import torch

from pyprune.capture.channels import collect_channels
from pyprune.core.batches import Samples
from pyprune.core.plan import Plan
from pyprune.models.adapter import adapter_for
from pyprune.recovery.bias_compensation import NO_BIAS, compensate_bias
from pyprune.slicing.slice import slice_
from pyprune.testing import numerics
from pyprune.testing.models import random_plan, tiny_model


def prepared(variant):
    dense = tiny_model(variant, dtype=torch.float64)
    adapter = adapter_for(dense)
    anatomy = adapter.anatomy(dense)
    samples = Samples([{"input_ids": torch.arange(5, 14)}, {"input_ids": torch.arange(20, 26)}])
    return dense, adapter, anatomy, samples, collect_channels(dense, anatomy, samples.batches())


def test_every_projection_keeps_its_mean_output():
    dense, adapter, anatomy, _, channels = prepared("bert")
    plan = random_plan(anatomy)
    student = slice_(copy.deepcopy(dense), adapter, plan)
    outcomes = compensate_bias(student, dense, anatomy, plan, channels)
    for block, outcome in zip(anatomy.blocks, outcomes, strict=True):
        group, mean = block.units, channels[block.units.name].mean
        kept = plan.mask(group.name).repeat_interleave(group.width)
        whole, cut = dense.get_submodule(block.projection), student.get_submodule(block.projection)
        numerics.ratio((cut.weight @ mean[kept] + cut.bias).detach(), (whole.weight @ mean + whole.bias).detach())
        assert outcome.fitted == (plan.counts[group.name] < group.size)


def test_what_keeps_all_units_or_has_no_bias_stays():
    dense, adapter, anatomy, _, channels = prepared("bert")
    keep_all = Plan.keep_all(anatomy)
    student = slice_(copy.deepcopy(dense), adapter, keep_all)
    assert {o.reason for o in compensate_bias(student, dense, anatomy, keep_all, channels)} == {"nothing was removed"}
    for (name, a), (_, b) in zip(student.named_parameters(), dense.named_parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("variant", ["llama"])
def test_without_a_bias_the_outcome_says_so(variant):
    dense, adapter, anatomy, _, channels = prepared(variant)
    plan = random_plan(anatomy)
    student = slice_(copy.deepcopy(dense), adapter, plan)
    reasons = {o.reason for o in compensate_bias(student, dense, anatomy, plan, channels)}
    assert reasons == {NO_BIAS, "nothing was removed"}
