"""Whole layers left out, over the whole zoo: masked = sliced = reloaded, without pyprune where nothing else is cut."""

import copy
import re

import pytest
import torch
from matrix import ROUNDING, check_generation, check_reload, inputs_of, run, save
from transformers import StaticCache

from pyprune.capture.masking import masked
from pyprune.core.errors import InputError
from pyprune.core.plan import Plan
from pyprune.models.adapter import adapter_for
from pyprune.models.inputs import example_inputs
from pyprune.slicing.check import max_difference
from pyprune.slicing.slice import slice_
from pyprune.testing.models import random_plan, tiny_model
from pyprune.testing.zoo import ZOO

# What has no such axis, or an option that cannot lose layers, and a part of why.
REFUSED = {
    **dict.fromkeys(("dinov2", "dinov2-swiglu"), "the model has heads, "),
    **dict.fromkeys(("swin", "swin-padded"), "the model has heads, "),
    **dict.fromkeys(("mask2former", "mask2former-pre-norm"), "the model has heads, "),
    **dict.fromkeys(("resnet", "resnet-basic", "resnet-early"), "the model has channels"),
    **dict.fromkeys(("convnext", "convnext-unscaled"), "the model has channels"),
    "gpt2-default-width": "scaled by the layer's number",
}
VARIANTS = [variant for variant in ZOO if variant not in REFUSED]


def dense_and_anatomy(variant, head=None, dtype=torch.float64, **options):
    model = tiny_model(variant, head or ZOO[variant].heads[0], dtype, **options)
    return model, adapter_for(model), adapter_for(model).anatomy(model, axes=["layers"])


def one_layer_less(anatomy, pruned=False):
    """Every stack loses a layer that is neither its first nor its last, where there are three."""
    plan = random_plan(anatomy, seed=3, emptied=False) if pruned else Plan.keep_all(anatomy)
    for group in anatomy.layer_groups:
        units = torch.arange(group.units.size)
        if len(units) > group.units.least:
            plan.kept[group.units.name] = units[units != (1 if len(units) > 2 else 0)]
    return plan


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Where the matrix leaves what lost layers and nothing else, and what lost more."""
    return tmp_path_factory.mktemp("plain"), tmp_path_factory.mktemp("pruned")


@pytest.mark.parametrize("pruned", [False, True], ids=["layers", "layers-and-units"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_masked_equals_sliced(variant, pruned, checkpoints):
    dense, adapter, anatomy = dense_and_anatomy(variant)
    inputs = inputs_of(dense)
    plan = one_layer_less(anatomy, pruned)
    lost = anatomy.lost_layers(plan.kept)
    assert lost
    with masked(dense, anatomy, plan):
        expected = run(dense, inputs)
    model = slice_(copy.deepcopy(dense), adapter, plan)
    found = run(model, inputs)
    assert max_difference(expected, found) < ROUNDING
    assert max_difference(run(dense, inputs), found) > 1e-6
    after = adapter.anatomy(model)
    assert len(after.layers) == len(anatomy.layers) - len(lost)
    left = [len(plan.kept[b.units.name]) for b in anatomy.blocks if b.layer_path not in lost]
    assert [group.size for group in after.groups] == left
    assert anatomy.params(anatomy.counts(plan.kept)) == after.params()
    assert anatomy.flops(12, anatomy.counts(plan.kept)) == pytest.approx(after.flops(12), rel=1e-12)
    save(model, inputs, found, checkpoints[pruned] / variant)


def test_another_process_reloads_all_of_them(checkpoints):
    plain, pruned = checkpoints
    check_reload(pruned, alone=plain)


@pytest.mark.parametrize("variant", REFUSED)
def test_stacks_that_need_all_their_layers_are_refused(variant):
    with pytest.raises(InputError, match=re.escape(REFUSED[variant])):
        dense_and_anatomy(variant, dtype=torch.float32)


def test_a_model_that_lost_units_loses_layers_too(tmp_path):
    """What the config notes layer by layer moves up with the layers."""
    for variant in ("llama", "bart", "segformer", "gpt_neox"):
        dense, adapter, _ = dense_and_anatomy(variant)
        slice_(dense, adapter, random_plan(adapter.anatomy(dense), seed=5, emptied=False))
        anatomy = adapter.anatomy(dense, axes=["layers"])
        plan = Plan.keep_all(anatomy)
        for group in anatomy.layer_groups:
            plan.kept[group.units.name] = torch.arange(1, group.units.size)
        inputs = inputs_of(dense)
        with masked(dense, anatomy, plan):
            expected = run(dense, inputs)
        slice_(dense, adapter, plan)
        dense.save_pretrained(tmp_path / variant)
        reloaded = type(dense).from_pretrained(tmp_path / variant, dtype=torch.float64)
        assert max_difference(expected, run(dense, inputs)) < ROUNDING
        assert max_difference(expected, run(reloaded, inputs)) < ROUNDING


GENERATING = [v for v in VARIANTS if {"AutoModelForCausalLM", "AutoModelForSeq2SeqLM"} & set(ZOO[v].heads)]


@pytest.mark.parametrize("pruned", [False, True], ids=["layers", "layers-and-units"])
@pytest.mark.parametrize("variant", GENERATING)
def test_generation_with_caches(variant, pruned):
    """The first layer goes, which speaks for the length of a cache."""
    head = next(h for h in ("AutoModelForSeq2SeqLM", "AutoModelForCausalLM") if h in ZOO[variant].heads)
    dense, adapter, anatomy = dense_and_anatomy(variant, head, torch.float32)
    plan = random_plan(anatomy, emptied=False) if pruned else Plan.keep_all(anatomy)
    for group in anatomy.layer_groups:
        plan.kept[group.units.name] = torch.arange(1, group.units.size)
    check_generation(dense, adapter, anatomy, plan)


@torch.no_grad()
def test_a_static_cache_has_a_place_for_each_layer_that_is_left():
    dense, adapter, anatomy = dense_and_anatomy("llama", dtype=torch.float32)
    model = slice_(dense, adapter, one_layer_less(anatomy))
    cache = StaticCache(config=model.config, max_cache_len=16)
    model(example_inputs(model)["input_ids"], past_key_values=cache)
    assert [layer.get_seq_length() for layer in cache.layers] == [12, 12]


def test_masks_of_layers_take_any_value():
    dense, _, anatomy = dense_and_anatomy("bert")
    inputs = inputs_of(dense)
    streams = dense(**inputs, output_hidden_states=True).hidden_states
    with masked(dense, anatomy, {"layers": torch.tensor([1.0, 1.0, 0.25])}):
        found = run(dense, inputs).last_hidden_state
    assert max_difference([found], [streams[-2] + 0.25 * (streams[-1] - streams[-2])]) < ROUNDING


def test_a_stack_keeps_one_layer():
    _, _, anatomy = dense_and_anatomy("bert")
    plan = Plan.keep_all(anatomy)
    plan.kept["layers"] = torch.arange(0)
    with pytest.raises(InputError, match="layers must keep at least 1 of 3"):
        plan.check(anatomy)


def test_axes_that_the_model_does_not_have():
    dense, adapter, _ = dense_and_anatomy("bert")
    with pytest.raises(InputError, match=r"axis 'width': the model has heads, hidden, layers, neurons"):
        adapter.anatomy(dense, axes=["width"])
