"""Text generated from images: with every cache the tokens are those of the masked model, whatever was emptied."""

import copy

import pytest
import torch
import transformers
from packaging.version import Version

from pyprune.capture.masking import masked
from pyprune.models.adapter import adapter_for
from pyprune.models.inputs import example_inputs
from pyprune.slicing.slice import slice_
from pyprune.testing.models import random_plan, tiny_model
from pyprune.testing.numerics import ratio

EMPTY = torch.arange(0)


def pruned(model, emptied):
    """`model` sliced to a random plan without the groups in `emptied`, and the context in which it is masked so."""
    adapter = adapter_for(model)
    anatomy = adapter.anatomy(model)
    plan = random_plan(anatomy, emptied=False)
    assert set(emptied) <= set(plan.kept)
    plan.kept |= dict.fromkeys(emptied, EMPTY)
    return slice_(copy.deepcopy(model), adapter, plan), masked(model, anatomy, plan)


def generated(model, inputs, **options):
    """Tokens, and the logits that they were chosen by."""
    out = model.generate(
        **inputs,
        max_new_tokens=8,
        min_new_tokens=8,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
        **options,
    )
    return out.sequences, torch.stack(out.logits)


def check(model, inputs, emptied, caches):
    sliced, mask = pruned(model, emptied)
    with mask:
        expected, expected_logits = generated(model, inputs, use_cache=False)
    for options in ({"use_cache": False}, *caches):
        found, logits = generated(sliced, inputs, **options)
        assert torch.equal(found, expected), options
        ratio(logits, expected_logits.double())
    beams, _ = generated(sliced, inputs, num_beams=2, use_cache=True)
    assert torch.equal(beams, generated(sliced, inputs, num_beams=2, use_cache=False)[0])


# Neither GIT nor BLIP runs with a static cache in transformers, pruned or not.
DYNAMIC = ({"use_cache": True},)


@pytest.mark.parametrize("emptied", [(), (0,), (0, 1)], ids=len)
def test_git(emptied):
    model = tiny_model("git", "GitForCausalLM")
    if Version(transformers.__version__) < Version("5.23"):
        pytest.skip("GIT of this transformers version loses its position when it generates with a cache")
    check(model, example_inputs(model, padding="left"), [f"layers.{layer}.heads" for layer in emptied], DYNAMIC)


@pytest.mark.parametrize(
    "emptied",
    [(), ("0.heads",), ("0.heads", "0.cross_heads"), ("0.heads", "1.heads", "0.cross_heads", "1.cross_heads")],
    ids=len,
)
def test_blip(emptied):
    model = tiny_model("blip-caption", "BlipForConditionalGeneration")
    groups = [f"text_decoder.layers.{name}" for name in emptied]
    check(model, example_inputs(model, padding="left"), groups, DYNAMIC)


@pytest.mark.parametrize(
    "emptied",
    [(), ("0.heads",), ("0.cross_heads", "1.cross_heads"), ("0.heads", "1.heads", "0.cross_heads")],
    ids=len,
)
@pytest.mark.parametrize("variant", ["vit-gpt2", "vit-bert"])
def test_vision_encoder_decoder(variant, emptied):
    model = tiny_model(variant, "VisionEncoderDecoderModel")
    inputs = {"pixel_values": example_inputs(model)["pixel_values"]}
    static = {"cache_implementation": "static", "disable_compile": True}
    check(model, inputs, [f"decoder.layers.{name}" for name in emptied], (*DYNAMIC, static))
