"""Decoders that read an encoder: two attentions in a layer, two members of one model type, two caches."""

import copy
import json
import pickle

import pytest
import torch
from transformers import EncoderDecoderModel

from pyprune.capture.masking import masked
from pyprune.core.plan import Plan
from pyprune.models.adapter import adapter_for
from pyprune.models.inputs import example_inputs
from pyprune.slicing.check import max_difference
from pyprune.slicing.slice import slice_
from pyprune.testing.models import random_plan, tiny_model

EMPTY = torch.arange(0)
SELF = ("decoder.layers.0.heads", "decoder.layers.1.heads")
CROSS = ("decoder.layers.0.cross_heads", "decoder.layers.1.cross_heads")


def both(attention="sdpa", dtype=torch.float32):
    return tiny_model("encoder-decoder", "EncoderDecoderModel", dtype, attention)


def pruned(model, emptied=()):
    """`model` sliced to a random plan without the groups in `emptied`, and the context in which it is masked so."""
    adapter = adapter_for(model)
    anatomy = adapter.anatomy(model)
    plan = random_plan(anatomy, emptied=False)
    plan.kept |= dict.fromkeys(emptied, EMPTY)
    return slice_(copy.deepcopy(model), adapter, plan), masked(model, anatomy, plan)


def tokens(model, inputs, **options):
    model.generation_config.eos_token_id = None
    out = model.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens=8,
        do_sample=False,
        pad_token_id=1,
        decoder_start_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
        **options,
    )
    assert all(step.isfinite().all() for step in out.logits)
    return out.sequences


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("emptied", [(), SELF[:1], CROSS[:1], CROSS, (*SELF, *CROSS)], ids=len)
def test_generation_is_the_masked_models_with_every_cache(emptied, attention):
    model = both(attention)
    inputs = example_inputs(model)
    sliced, mask = pruned(model, emptied)
    with mask:
        expected = tokens(model, inputs, use_cache=False)
    assert torch.equal(tokens(sliced, inputs, use_cache=False), expected)
    assert torch.equal(tokens(sliced, inputs, use_cache=True), expected)
    static = tokens(sliced, inputs, cache_implementation="static", disable_compile=True)
    assert torch.equal(static, expected)
    beams = tokens(sliced, inputs, num_beams=2, use_cache=True)
    assert torch.equal(beams, tokens(sliced, inputs, num_beams=2, use_cache=False))


def test_each_member_has_its_own_widths_in_its_own_config(tmp_path):
    model = both()
    adapter = adapter_for(model)
    plan = Plan.keep_all(adapter.anatomy(model))
    plan.kept |= {
        "encoder.layers.1.heads": torch.arange(3),
        "decoder.layers.0.neurons": torch.arange(5),
        "decoder.layers.1.cross_heads": torch.arange(1),
    }
    slice_(model, adapter, plan)
    model.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["encoder"]["per_layer_config"] == {"1": {"num_attention_heads": 3}}
    assert stored["decoder"]["per_layer_config"] == {"0": {"intermediate_size": 5}}
    assert stored["decoder"]["pruned_groups"] == {"layers.1.cross_heads": 1}
    assert not {"per_layer_config", "pruned_groups"} & set(stored)
    assert "pruned_groups" not in stored["encoder"]
    assert adapter.anatomy(EncoderDecoderModel.from_pretrained(tmp_path)) == adapter.anatomy(model)


def test_members_are_saved_and_put_together_again(tmp_path):
    model, _ = pruned(both(), (SELF[0], CROSS[1]))
    model.encoder.save_pretrained(tmp_path / "encoder")
    model.decoder.save_pretrained(tmp_path / "decoder")
    again = EncoderDecoderModel.from_encoder_decoder_pretrained(tmp_path / "encoder", tmp_path / "decoder").eval()
    again.enc_to_dec_proj.load_state_dict(model.enc_to_dec_proj.state_dict())
    inputs = example_inputs(model)
    with torch.no_grad():
        expected = model(**inputs, use_cache=False)
        assert max_difference(expected, again(**inputs, use_cache=False)) == 0
        again.save_pretrained(tmp_path / "both")
        reloaded = EncoderDecoderModel.from_pretrained(tmp_path / "both")
        assert max_difference(expected, reloaded(**inputs, use_cache=False)) == 0


@torch.no_grad()
def test_a_pruned_pair_is_copied_and_pruned_again():
    model, _ = pruned(both(dtype=torch.float64), (CROSS[0],))
    inputs = example_inputs(model)
    expected = model(**inputs, use_cache=False)
    assert max_difference(expected, pickle.loads(pickle.dumps(model))(**inputs, use_cache=False)) == 0
    twice, mask = pruned(model, (SELF[1],))
    with mask:
        expected = model(**inputs, use_cache=False)
    assert max_difference(expected, twice(**inputs, use_cache=False)) < 1e-12


def test_attentions_of_both_kinds_are_still_recorded():
    model, _ = pruned(both("eager"), (SELF[0], CROSS[1]))
    inputs = example_inputs(model)
    output = model(**inputs, output_attentions=True, use_cache=False)
    sizes = {g.name: g.size for g in adapter_for(model).anatomy(model).groups}
    assert [a.shape[1] for a in output.decoder_attentions] == [sizes[name] for name in SELF]
    assert [a.shape[1] for a in output.cross_attentions] == [sizes[name] for name in CROSS]
    assert {a.shape[3] for a in output.cross_attentions} == {inputs["input_ids"].shape[1]}


def test_without_cross_attention_in_the_config_a_decoder_has_one_attention():
    model = tiny_model("bert-decoder")
    kinds = {g.name.rpartition(".")[2] for g in adapter_for(model).anatomy(model).groups}
    assert kinds == {"heads", "neurons"}
