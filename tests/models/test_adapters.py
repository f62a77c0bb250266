"""Every family, every task head: masked = sliced = saved and reloaded."""

import copy
import pickle
from inspect import signature

import pytest
import torch
import transformers

from pyprune.capture.masking import masked
from pyprune.core.errors import InputError
from pyprune.core.plan import Plan
from pyprune.models.adapter import adapter_for
from pyprune.models.inputs import example_inputs
from pyprune.slicing.check import max_difference
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
    inputs = example_inputs(model)
    dense = run(model, inputs)
    with masked(model, anatomy, plan):
        expected = run(model, inputs)
    sliced = run(slice_(model, adapter, plan), inputs)
    assert max_difference(expected, sliced) < ROUNDING
    assert max_difference(dense, sliced) > 1e-4
    assert {g.name: g.size for g in adapter.anatomy(model).groups} == plan.counts


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", VARIANTS)
def test_sliced_equals_reloaded(variant, dtype, tmp_path):
    """What the config says and the classes; test_matrix.py reloads the outputs under every head."""
    model = tiny_model(variant, dtype=dtype)
    adapter = adapter_for(model)
    slice_(model, adapter, random_plan(adapter.anatomy(model)))
    inputs = example_inputs(model)
    model.save_pretrained(tmp_path)
    reloaded, info = transformers.AutoModel.from_pretrained(tmp_path, output_loading_info=True)
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


@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_padded_positions_do_not_leak_after_slicing(variant, padding):
    """A padded row gives what the same row gives alone, so masks still fit the sliced attention."""
    if padding == "left" and "position_ids" not in signature(tiny_model(variant).forward).parameters:
        pytest.skip("positions cannot be given, so left padding shifts them")
    model = tiny_model(variant, dtype=torch.float64)
    adapter = adapter_for(model)
    slice_(model, adapter, random_plan(adapter.anatomy(model)))
    inputs = example_inputs(model, batch=3, padding=padding)
    if padding == "left":
        inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0) + positions_start(model)
    together = run(model, inputs).last_hidden_state
    real = inputs["attention_mask"][2].bool()
    assert real.sum() < real.numel()
    alone = run(model, {"input_ids": inputs["input_ids"][2:, real]}).last_hidden_state
    assert max_difference(together[2:, real], alone) < ROUNDING


def positions_start(model):
    return model.config.pad_token_id + 1 if model.config.model_type == "roberta" else 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_pruned_model_is_pruned_again(variant, tmp_path):
    model = tiny_model(variant, dtype=torch.float64)
    adapter = adapter_for(model)
    slice_(model, adapter, random_plan(adapter.anatomy(model), seed=1))
    anatomy = adapter.anatomy(model)
    plan = random_plan(anatomy, seed=2, emptied=False)
    plan.kept[anatomy.groups[-1].name] = torch.empty(0, dtype=torch.int64)
    inputs = example_inputs(model)
    with masked(model, anatomy, plan):
        expected = run(model, inputs)
    sliced = run(slice_(model, adapter, plan), inputs)
    assert max_difference(expected, sliced) < ROUNDING
    model.save_pretrained(tmp_path / "once")
    once = transformers.AutoModel.from_pretrained(tmp_path / "once")
    once.save_pretrained(tmp_path / "twice")
    twice = transformers.AutoModel.from_pretrained(tmp_path / "twice")
    assert max_difference(run(model, inputs), run(twice, inputs)) == 0
    assert (tmp_path / "once/config.json").read_text() == (tmp_path / "twice/config.json").read_text()


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_sliced_model_is_copied_pickled_and_trained(variant):
    model = tiny_model(variant, dtype=torch.float64)
    adapter = adapter_for(model)
    slice_(model, adapter, random_plan(adapter.anatomy(model)))
    inputs = example_inputs(model)
    expected = run(model, inputs)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert max_difference(expected, run(twin, inputs)) == 0
        assert [type(m) for m in twin.modules()] == [type(m) for m in model.modules()]
    model(**inputs).last_hidden_state.square().sum().backward()
    for block in adapter.anatomy(model).blocks:
        for cut in block.units.cuts:
            weight = model.get_submodule(cut.module).weight
            # An emptied attention skips its own projections, which have no elements.
            assert weight.numel() == 0 or weight.grad.abs().sum() > 0, cut.module


@pytest.mark.parametrize(
    "variant", ["bert", "distilbert", "llama", "qwen2-window", "modernbert", "deberta-v2-relative"]
)
def test_hidden_states_and_attentions_of_every_layer_are_still_recorded(variant, tmp_path):
    model = tiny_model(variant, attention="eager")
    adapter = adapter_for(model)
    slice_(model, adapter, random_plan(adapter.anatomy(model)))
    model.save_pretrained(tmp_path)
    reloaded = transformers.AutoModel.from_pretrained(tmp_path, attn_implementation="eager")
    inputs = example_inputs(model)
    output = reloaded(**inputs, output_hidden_states=True, output_attentions=True)
    heads = [a.shape[1] for a in output.attentions]
    repeats = 2 if adapter.anatomy(model).blocks[0].units.axis == "kv_groups" else 1
    assert heads == [g.size * repeats for g in adapter.anatomy(model).groups[::2]]
    assert len(output.hidden_states) == len(heads) + 1


@pytest.mark.parametrize(("variant", "head"), [("bert", "AutoModelForMaskedLM"), ("qwen2", "AutoModelForCausalLM")])
def test_tied_weights_stay_tied(variant, head, tmp_path):
    model = tiny_model(variant, head)
    adapter = adapter_for(model)
    slice_(model, adapter, random_plan(adapter.anatomy(model)))
    model.save_pretrained(tmp_path)
    for m in (model, type(model).from_pretrained(tmp_path)):
        assert m.get_output_embeddings().weight is m.get_input_embeddings().weight


def test_a_wrapper_around_the_model_is_refused():
    model = tiny_model("bert")
    wrapper = torch.nn.Sequential(model)
    wrapper.config = model.config
    with pytest.raises(InputError, match=r"Sequential holds no layers of a known family: give the transformers"):
        adapter_for(wrapper).anatomy(wrapper)
