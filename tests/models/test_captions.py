"""Text generated from images: with every cache the tokens are those of the masked model, whatever was emptied."""

import copy

import pytest
import torch

from pyprune.capture.masking import masked
from pyprune.models.adapter import adapter_for
from pyprune.models.inputs import example_inputs
from pyprune.slicing.slice import slice_
from pyprune.testing.models import random_plan, tiny_model

EMPTY = torch.arange(0)


def pruned(model, emptied):
    """`model` sliced to a random plan without the groups in `emptied`, and the context in which it is masked so."""
    adapter = adapter_for(model)
    anatomy = adapter.anatomy(model)
    plan = random_plan(anatomy, emptied=False)
    assert set(emptied) <= set(plan.kept)
    plan.kept |= dict.fromkeys(emptied, EMPTY)
    return slice_(copy.deepcopy(model), adapter, plan), masked(model, anatomy, plan)


def tokens(model, inputs, **options):
    model.generation_config.eos_token_id = None
    return model.generate(**inputs, max_new_tokens=8, do_sample=False, pad_token_id=1, **options)


# GIT has no static cache in transformers either.
@pytest.mark.parametrize("emptied", [(), (0,), (0, 1)], ids=len)
def test_git(emptied):
    model = tiny_model("git", "GitForCausalLM")
    inputs = example_inputs(model, padding="left")
    sliced, mask = pruned(model, [f"layers.{layer}.heads" for layer in emptied])
    with mask:
        expected = tokens(model, inputs, use_cache=False)
    assert torch.equal(tokens(sliced, inputs, use_cache=False), expected)
    assert torch.equal(tokens(sliced, inputs, use_cache=True), expected)
    beams = tokens(sliced, inputs, num_beams=2, use_cache=True)
    assert torch.equal(beams, tokens(sliced, inputs, num_beams=2, use_cache=False))
