"""Uniform plans become configs that transformers reads alone."""

import copy
import json

import pytest
import torch
from matrix import check_reload, note, run

import pyprune
from pyprune.core.batches import Samples
from pyprune.core.errors import InputError
from pyprune.core.plan import Plan
from pyprune.core.units import group_kind
from pyprune.models.adapter import adapter_for
from pyprune.models.inputs import example_inputs
from pyprune.models.native import make_native_, native_groups
from pyprune.slicing.slice import slice_
from pyprune.testing.models import random_plan, tiny_model


def kinds(model):
    groups = adapter_for(model).anatomy(model).groups
    named = native_groups(model)
    return {group_kind(g).rpartition(".")[2] for g in groups if g.name in named}


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("bert", {"neurons"}),
        ("distilbert", {"neurons"}),
        ("llama", {"kv_groups", "neurons"}),
        ("qwen3", {"kv_groups", "neurons"}),
    ],
)
def test_what_a_config_can_say(variant, expected):
    model = tiny_model(variant)
    before = model.config.to_dict()
    assert kinds(model) == expected
    assert model.config.to_dict() == before


def samples():
    generator = torch.Generator().manual_seed(0)
    return Samples([{"input_ids": torch.randint(3, 99, (n,), generator=generator)} for n in (9, 12, 7, 11)])


def test_uniform_checkpoints_load_without_pyprune(tmp_path):
    heads = {"AutoModelForMaskedLM": "bert", "AutoModelForCausalLM": "qwen3"}
    for head, variant in heads.items():
        model = tiny_model(variant, head)
        result = pyprune.prune(model, {"params": 0.8}, samples(), deploy="uniform", out=tmp_path / head)
        shapes = {group_kind(g): {result.plan.counts[g.name]} for g in result.anatomy.groups}
        for group in result.anatomy.groups:
            assert shapes[group_kind(group)] == {result.plan.counts[group.name]}
        assert 0.5 < result.plan.cost(result.anatomy, "params") / result.anatomy.params() <= 0.8
        assert "per_layer_config" not in json.loads((tmp_path / head / "config.json").read_text())
        inputs = example_inputs(model)
        note(type(model), inputs, run(result.pruned, inputs), tmp_path / head)
    check_reload(alone=tmp_path)


def test_layers_of_several_shapes_leave_the_config_alone():
    model = tiny_model("llama")
    adapter = adapter_for(model)
    slice_(model, adapter, random_plan(adapter.anatomy(model)))
    before = model.config.to_dict()
    assert not make_native_(model)
    assert model.config.to_dict() == before


def test_a_shape_that_the_config_cannot_say_leaves_it_alone():
    model = tiny_model("bert")
    adapter = adapter_for(model)
    anatomy = adapter.anatomy(model)
    plan = Plan.keep_all(anatomy)
    plan.kept |= {g.name: torch.arange(2) for g in anatomy.groups if g.axis == "heads"}
    slice_(model, adapter, plan)
    before = copy.deepcopy(model.config.to_dict())
    assert not make_native_(model)
    assert model.config.to_dict() == before


@pytest.mark.parametrize("cheap", ["kv_groups", "neurons"])
def test_a_uniform_plan_empties_no_block_of_all_layers(cheap):
    """No config can say that: the checkpoint would need pyprune."""
    model = tiny_model("llama")
    groups = adapter_for(model).anatomy(model).groups
    scores = pyprune.Scores({g.name: torch.rand(g.size) * (1e-9 if g.axis == cheap else 1) for g in groups})
    plan = pyprune.plan(model, scores, {"flops": 0.35}, length=8, deploy="uniform")
    assert min(plan.counts.values()) == 1
    config = pyprune.apply(model, plan).config
    assert not config.is_heterogeneous
    assert "pruned_groups" not in vars(config)


@pytest.mark.parametrize("left", [0, 1])
def test_a_plan_that_only_says_to_be_uniform_is_refused(left):
    model = tiny_model("llama")
    plan = Plan.keep_all(adapter_for(model).anatomy(model))
    plan.meta["uniform"] = True
    plan.kept |= {name: torch.arange(left) for name in plan.kept if left == 0 or name == "layers.0.neurons"}
    before = {name: tensor.shape for name, tensor in model.state_dict().items()}
    with pytest.raises(InputError, match="the plan is called uniform, but LlamaConfig cannot say its widths"):
        pyprune.apply(model, plan, inplace=True)
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == before


def test_an_unknown_deployment_is_refused():
    with pytest.raises(InputError, match="deploy='everywhere': choose one of layers, uniform"):
        pyprune.prune(tiny_model("bert"), {"flops": 0.5}, samples(), deploy="everywhere")
