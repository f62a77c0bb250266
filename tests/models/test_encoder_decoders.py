"""Encoder-decoders: generation with every cache, emptied cross-attention, and one stack of a pruned whole."""

import copy
import pickle

import pytest
import torch
import transformers

from pyprune.capture.masking import masked
from pyprune.core.errors import InputError, MismatchError
from pyprune.core.plan import Plan
from pyprune.models.adapter import adapter_for
from pyprune.models.inputs import example_inputs
from pyprune.slicing.check import max_difference
from pyprune.slicing.slice import slice_
from pyprune.testing.models import random_plan, tiny_model
from pyprune.testing.numerics import ratio

GENERATORS = {
    "bart": "AutoModelForSeq2SeqLM",
    "t5": "AutoModelForSeq2SeqLM",
    "t5-gated": "AutoModelForSeq2SeqLM",
    "whisper": "AutoModelForSpeechSeq2Seq",
    "pix2struct": "AutoModelForImageTextToText",
}
DECODERS = [("bart", "AutoModelForCausalLM"), ("whisper", "AutoModelForCausalLM")]
EMPTY = torch.empty(0, dtype=torch.int64)


def pruned(variant, head, emptied=(), dtype=torch.float32, attention="sdpa", **config):
    """A model, its anatomy, and a random plan that removes all heads of the attentions whose names begin so."""
    model = tiny_model(variant, head, dtype, attention, **config)
    anatomy = adapter_for(model).anatomy(model)
    plan = random_plan(anatomy, seed=5, emptied=False)
    plan.kept |= {g.name: EMPTY for g in anatomy.groups if g.axis == "heads" and g.name.startswith(emptied)}
    return model, anatomy, plan


def generate(model, **options):
    inputs = {k: v for k, v in example_inputs(model).items() if not k.startswith("decoder_")}
    model.generation_config.eos_token_id = None
    out = model.generate(
        **inputs, max_new_tokens=8, do_sample=False, return_dict_in_generate=True, output_logits=True, **options
    )
    assert all(step.isfinite().all() for step in out.logits)
    return out.sequences


@pytest.mark.parametrize("emptied", ["decoder.layers.0.heads", "decoder.layers.0.cross", "decoder.", "encoder."])
@pytest.mark.parametrize(("variant", "head"), [*GENERATORS.items(), *DECODERS])
def test_generation_with_every_cache_is_that_of_the_masked_model(variant, head, emptied):
    model, anatomy, plan = pruned(variant, head, emptied)
    with masked(model, anatomy, plan):
        expected = generate(model, use_cache=False)
        beams = generate(model, use_cache=False, num_beams=2)
    slice_(model, adapter_for(model), plan)
    assert torch.equal(generate(model, use_cache=False), expected)
    assert torch.equal(generate(model, use_cache=True), expected)
    assert torch.equal(generate(model, cache_implementation="static", disable_compile=True), expected)
    assert torch.equal(generate(model, use_cache=True, num_beams=2), beams)
    static = generate(model, cache_implementation="static", disable_compile=True, num_beams=2)
    assert torch.equal(static, beams)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("variant", GENERATORS)
def test_source_and_target_may_differ_in_length(variant, attention):
    emptied = ("encoder.layers.0", "decoder.layers.1")
    model, anatomy, plan = pruned(variant, GENERATORS[variant], emptied, torch.float64, attention)
    inputs = {k: v.double() if v.is_floating_point() else v for k, v in example_inputs(model).items()}
    inputs["decoder_input_ids"] = inputs["decoder_input_ids"][:, :5]
    with masked(model, anatomy, plan):
        expected = model(**inputs, use_cache=False)
    sliced = slice_(copy.deepcopy(model), adapter_for(model), plan)
    recorded = {"output_attentions": True, "output_hidden_states": True} if attention == "eager" else {}
    found = sliced(**inputs, use_cache=False, **recorded)
    assert max_difference(expected.logits, found.logits) < 1e-10
    assert max_difference(expected.logits, sliced(**inputs, use_cache=True).logits) < 1e-10
    if recorded:
        counts = {"encoder.heads": [], "decoder.heads": [], "decoder.cross_heads": []}
        for group in anatomy.groups:
            stack, *_, kind = group.name.split(".")
            counts.get(f"{stack}.{kind}", []).append(plan.counts[group.name])
        weights = (found.encoder_attentions, found.decoder_attentions, found.cross_attentions)
        assert [[w.shape[1] for w in layers] for layers in weights] == list(counts.values())
        assert {w.shape[2:] for w in found.cross_attentions} == {(5, found.encoder_last_hidden_state.shape[1])}


ALONE = [
    ("bart", "AutoModelForSeq2SeqLM", "BartForCausalLM"),
    ("t5", "AutoModelForSeq2SeqLM", "T5EncoderModel"),
    ("whisper", "AutoModelForSpeechSeq2Seq", "WhisperForAudioClassification"),
    ("whisper", "AutoModelForSpeechSeq2Seq", "WhisperForCausalLM"),
]


@torch.no_grad()
@pytest.mark.parametrize(("variant", "whole", "alone"), ALONE)
def test_one_stack_is_loaded_from_the_checkpoint_of_the_whole(variant, whole, alone, tmp_path):
    model, _, plan = pruned(variant, whole)
    slice_(model, adapter_for(model), plan)
    model.save_pretrained(tmp_path / "whole")
    stack, info = getattr(transformers, alone).from_pretrained(tmp_path / "whole", output_loading_info=True)
    # Heads, and what is tied to an embedding of the other stack, are missing in dense models too.
    assert not info["mismatched_keys"]
    assert not {key for key in info["missing_keys"] if ".layers." in key or ".block." in key}
    counts = {g.name: g.size for g in adapter_for(stack).anatomy(stack).groups}
    assert counts == {name: plan.counts[name] for name in counts}
    stack.save_pretrained(tmp_path / "stack")
    again = getattr(transformers, alone).from_pretrained(tmp_path / "stack")
    inputs = example_inputs(stack)
    assert max_difference(stack(**inputs)[0], again(**inputs)[0]) == 0


def test_a_group_of_no_stack_is_still_refused(tmp_path):
    model, _, plan = pruned("bart", "BartForCausalLM")
    slice_(model, adapter_for(model), plan)
    model.config.pruned_groups["decoder.layers.9.heads"] = 1
    model.save_pretrained(tmp_path)
    with pytest.raises(MismatchError, match=r"no group 'decoder\.layers\.9\.heads'"):
        transformers.BartForCausalLM.from_pretrained(tmp_path)


def test_cross_attention_without_a_source_costs_nothing():
    model = tiny_model("bart", "BartForCausalLM")
    anatomy = adapter_for(model).anatomy(model)
    plan = Plan.keep_all(anatomy)
    plan.kept["decoder.layers.0.cross_heads"] = EMPTY
    assert anatomy.flops(12) == anatomy.flops(12, plan.counts)
    assert anatomy.params(plan.counts) < anatomy.params()


@torch.no_grad()
def test_a_shared_bias_is_read_by_the_heads_that_stay_also_when_pruned_twice(tmp_path):
    model, _, plan = pruned("t5", "AutoModelForSeq2SeqLM", dtype=torch.float64)
    dense = set(model.state_dict())
    plan.kept["encoder.layers.0.heads"] = torch.tensor([2])
    plan.kept["encoder.layers.1.heads"] = torch.tensor([0, 2, 3])
    plan.kept["encoder.layers.2.heads"] = torch.arange(4)
    slice_(model, adapter_for(model), plan)
    added = {name for name in model.state_dict() if name not in dense}
    assert "encoder.block.1.layer.0.SelfAttention.kept_heads" in added
    assert not any("block.2.layer.0" in name for name in added if name.startswith("encoder"))
    again = Plan.keep_all(adapter_for(model).anatomy(model))
    again.kept |= {"encoder.layers.0.heads": EMPTY, "encoder.layers.1.heads": torch.tensor([0, 2])}
    with masked(model, adapter_for(model).anatomy(model), again):
        expected = model(**example_inputs(model), use_cache=False)
    slice_(model, adapter_for(model), again)
    assert model.encoder.block[1].layer[0].SelfAttention.kept_heads.tolist() == [0, 3]
    found = model(**example_inputs(model), use_cache=False)
    assert max_difference(expected, found) < 1e-10
    model.save_pretrained(tmp_path)
    reloaded = type(model).from_pretrained(tmp_path, dtype="auto")
    for twin in (reloaded, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert max_difference(found, twin(**example_inputs(model), use_cache=False)) == 0
        assert [type(m) for m in twin.modules()] == [type(m) for m in model.modules()]
    half = type(model).from_pretrained(tmp_path, dtype=torch.float16)
    assert half.encoder.block[1].layer[0].SelfAttention.kept_heads.dtype == torch.int64


def test_a_pruned_t5_is_trained_with_checkpointed_gradients():
    emptied = ("encoder.layers.0", "decoder.layers.1.cross")
    model, _, plan = pruned("t5", "AutoModelForSeq2SeqLM", emptied, dropout_rate=0.0)
    slice_(model, adapter_for(model), plan).train()
    inputs = {**example_inputs(model), "use_cache": False}
    model(**inputs).logits.square().sum().backward()
    name = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    expected = model.get_parameter(name).grad.clone()
    assert expected.abs().sum() > 0
    model.zero_grad()
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    model(**inputs).logits.square().sum().backward()
    ratio(model.get_parameter(name).grad, expected.double())


def test_an_encoder_of_decoder_layers_is_refused():
    model = tiny_model("t5", "T5EncoderModel", is_decoder=True)
    with pytest.raises(InputError, match="T5EncoderModel with is_decoder=True cannot be pruned"):
        adapter_for(model).anatomy(model)
