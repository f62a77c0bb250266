"""Decoders of the zoo beyond those that every stage is tested with: generation, and what their tables need code for."""

import copy
import pickle

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from pyprune.capture.masking import masked
from pyprune.models.adapter import adapter_for
from pyprune.models.inputs import example_inputs
from pyprune.slicing.check import max_difference
from pyprune.slicing.slice import slice_
from pyprune.testing.models import VARIANTS, random_plan, tiny_config, tiny_model
from pyprune.testing.zoo import decoders

DECODERS = [v for v, t in decoders.MODELS.items() if v not in VARIANTS and "AutoModelForCausalLM" in t.heads]


def pruned(model, **options):
    adapter = adapter_for(model)
    return slice_(model, adapter, random_plan(adapter.anatomy(model), **options))


def tokens(model, inputs, **options):
    model.generation_config.eos_token_id = None
    return model.generate(**inputs, max_new_tokens=6, do_sample=False, pad_token_id=1, **options)


@pytest.mark.parametrize("variant", DECODERS)
def test_generation_gives_the_tokens_of_the_masked_model(variant):
    """The plan empties the first attention, which speaks for the length of the whole cache."""
    model = tiny_model(variant, "AutoModelForCausalLM")
    adapter = adapter_for(model)
    anatomy = adapter.anatomy(model)
    plan = random_plan(anatomy)
    inputs = example_inputs(model, padding="left")
    with masked(model, anatomy, plan):
        expected = tokens(model, inputs, use_cache=False)
    sliced = slice_(copy.deepcopy(model), adapter, plan)
    assert torch.equal(tokens(sliced, inputs, use_cache=True), expected)
    assert torch.equal(tokens(sliced, inputs, cache_implementation="static", disable_compile=True), expected)


@torch.no_grad()
def test_a_layer_with_a_head_count_of_its_own_follows_the_config_in_all_else():
    model = pruned(tiny_model("phi3", dtype=torch.float64, num_key_value_heads=4))
    attention = model.layers[1].self_attn
    assert attention.config.num_attention_heads == attention.num_key_value_heads != model.config.num_attention_heads
    twins = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    inputs = example_inputs(model)
    expected = model(**inputs, use_cache=False)
    model.set_attn_implementation("eager")
    output = model(**inputs, use_cache=False, output_attentions=True)
    assert output.attentions[1].shape[1] == attention.num_key_value_heads
    assert max_difference(expected.last_hidden_state, output.last_hidden_state) < 1e-6
    for twin in twins:
        assert twin.layers[1].self_attn.config._config is twin.config
        assert max_difference(twin(**inputs, use_cache=False), expected) == 0


def test_emptied_layers_of_gpt2_are_copied_and_pickled():
    model = pruned(tiny_model("gpt2"))
    kinds = [type(m) for m in model.modules()]
    assert {"EmptyGPT2Attention", "EmptyConv1D"} <= {kind.__name__ for kind in kinds}
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert [type(m) for m in twin.modules()] == kinds


def test_a_width_left_to_its_default_is_written_out_when_layers_differ_from_it(tmp_path):
    model = pruned(tiny_model("gpt2-default-width"), emptied=False)
    model.save_pretrained(tmp_path)
    stored = AutoConfig.from_pretrained(tmp_path)
    assert vars(stored)["n_inner"] == 128
    assert [c.n_inner for c in stored.per_layer_config] == [block.mlp.c_fc.nf for block in model.h]


@torch.no_grad()
def test_the_text_half_of_a_multimodal_gemma3_is_pruned(tmp_path):
    vision = {"hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = tiny_config("gemma3").to_dict()
    config = AutoConfig.for_model(
        "gemma3",
        text_config=text,
        vision_config={"model_type": "siglip_vision_model", **vision, "image_size": 16, "patch_size": 4},
        mm_tokens_per_image=4,
        image_token_index=98,
    )
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float64).eval()
    adapter = adapter_for(model)
    anatomy = adapter.anatomy(model)
    assert {"model.language_model.layers.0.kv_groups", "model.language_model.layers.2.neurons"} <= {
        group.name for group in anatomy.groups
    }
    plan = random_plan(anatomy)
    ids = torch.tensor([[5, 98, 98, 98, 98, 7, 8]])
    inputs = {"input_ids": ids, "token_type_ids": (ids == 98).long(), "use_cache": False}
    inputs["pixel_values"] = torch.randn(1, 3, 16, 16, dtype=torch.float64)
    with masked(model, anatomy, plan):
        expected = model(**inputs)
    sliced = slice_(model, adapter, plan)(**inputs)
    assert max_difference(expected.logits, sliced.logits) < 1e-10
    model.save_pretrained(tmp_path)
    assert max_difference(sliced, AutoModelForImageTextToText.from_pretrained(tmp_path, dtype="auto")(**inputs)) == 0
