"""Every family, every task head: masked = sliced = saved and reloaded."""

import copy

import pytest
import torch
import transformers

from pyprune.capture.masking import masked
from pyprune.core.plan import Plan
from pyprune.models.registry import adapter_for
from pyprune.slicing.check import example_inputs, max_difference
from pyprune.slicing.slice import slice_
from pyprune.testing.models import VARIANTS, heads, random_plan, tiny_model

CASES = [(variant, head) for variant in VARIANTS for head in heads(variant)]
BARE = [(variant, "AutoModel") for variant in VARIANTS]
ROUNDING = 1e-12  # float64, outputs of order 1 to 10


@torch.no_grad()
def run(model, inputs):
    return model(**inputs, use_cache=False) if "use_cache" in vars(model.config) else model(**inputs)


@pytest.mark.parametrize(
    ("variant", "head", "attention"), [(*case, "sdpa") for case in CASES] + [(*case, "eager") for case in BARE]
)
def test_masked_equals_sliced(variant, head, attention):
    model = tiny_model(variant, head, torch.float64, attention)
    adapter = adapter_for(model)
    anatomy = adapter.anatomy(model)
    plan = random_plan(anatomy)
    inputs = example_inputs(model.config)
    dense = run(model, inputs)
    with masked(model, anatomy, plan):
        expected = run(model, inputs)
    sliced = run(slice_(model, adapter, plan), inputs)
    assert max_difference(expected, sliced) < ROUNDING
    assert max_difference(dense, sliced) > 1e-4
    assert {g.name: g.size for g in adapter.anatomy(model).groups} == plan.counts


@pytest.mark.parametrize(
    ("variant", "head", "dtype"),
    [(*case, torch.float32) for case in CASES] + [(*case, torch.bfloat16) for case in BARE],
)
def test_sliced_equals_reloaded(variant, head, dtype, tmp_path):
    model = tiny_model(variant, head, dtype)
    adapter = adapter_for(model)
    slice_(model, adapter, random_plan(adapter.anatomy(model)))
    inputs = example_inputs(model.config)
    model.save_pretrained(tmp_path)
    reloaded, info = getattr(transformers, head).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert type(reloaded) is type(model)
    assert reloaded.config.to_dict()["per_layer_config"] == model.config.to_dict()["per_layer_config"]
    assert max_difference(run(model, inputs), run(reloaded, inputs)) == 0
    assert [type(m) for m in model.modules()] == [type(m) for m in reloaded.modules()]


@pytest.mark.parametrize("variant", VARIANTS)
def test_keeping_all_units_changes_nothing(variant):
    model = tiny_model(variant)
    adapter = adapter_for(model)
    before, config = dict(model.named_parameters()), model.config.to_dict()
    slice_(model, adapter, Plan.keep_all(adapter.anatomy(model)))
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    assert model.config.to_dict() == config
