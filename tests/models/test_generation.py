"""Generation with emptied attentions: the cache still counts tokens, and gives what no cache gives."""

import copy

import pytest
import torch
from transformers import DynamicCache

from pyprune.models.adapter import adapter_for
from pyprune.models.inputs import example_inputs
from pyprune.slicing.slice import slice_
from pyprune.testing.models import VARIANTS, heads, random_plan, tiny_model
from pyprune.testing.numerics import ratio

DECODERS = [*(v for v in VARIANTS if "AutoModelForCausalLM" in heads(v)), "modernbert-decoder"]
EMPTY = torch.empty(0, dtype=torch.int64)


def emptied_model(variant, layers, attention="sdpa"):
    """A causal model whose attention is emptied in `layers`, and pruned elsewhere.

    In float32, because transformers' eager attention makes NaN of padded rows in float64.
    """
    model = tiny_model(variant, "AutoModelForCausalLM", torch.float32, attention)
    adapter = adapter_for(model)
    anatomy = adapter.anatomy(model)
    plan = random_plan(anatomy, emptied=False)
    for group in anatomy.groups:
        if group.layer in layers and group.axis != "neurons":
            plan.kept[group.name] = EMPTY
    slice_(model, adapter, plan)
    model.generation_config.eos_token_id = None
    return model


def tokens(model, inputs, **options):
    out = model.generate(
        **inputs,
        max_new_tokens=8,
        do_sample=False,
        pad_token_id=1,
        return_dict_in_generate=True,
        output_logits=True,
        **options,
    )
    assert all(step.isfinite().all() for step in out.logits)
    return out.sequences


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("layers", [(0,), (1,), (0, 1, 2)])
@pytest.mark.parametrize("variant", DECODERS)
def test_generation_is_the_same_with_and_without_a_cache(variant, layers, attention):
    model = emptied_model(variant, layers, attention)
    inputs = example_inputs(model, padding="left")
    assert torch.equal(tokens(model, inputs, use_cache=True), tokens(model, inputs, use_cache=False))


@pytest.mark.parametrize("variant", [v for v in DECODERS if v != "bert-decoder"])
def test_static_cache_and_beams(variant):
    model = emptied_model(variant, (0,))
    inputs = example_inputs(model, padding="left")
    expected = tokens(model, inputs, use_cache=False)
    assert torch.equal(tokens(model, inputs, cache_implementation="static", disable_compile=True), expected)
    beams = tokens(model, inputs, num_beams=2, use_cache=True)
    assert torch.equal(beams, tokens(model, inputs, num_beams=2, use_cache=False))


@torch.no_grad()
@pytest.mark.parametrize("given_config", [True, False])
@pytest.mark.parametrize("variant", DECODERS)
def test_the_cache_knows_its_length(variant, given_config):
    model = emptied_model(variant, (0,))
    ids = example_inputs(model, batch=1)["input_ids"]
    cache = DynamicCache(config=model.config) if given_config else DynamicCache()
    split = ids.shape[1] // 2
    model(ids[:, :split], past_key_values=cache, use_cache=True)
    assert cache.get_seq_length() == split
    rest = model(ids[:, split:], past_key_values=copy.deepcopy(cache), use_cache=True).logits
    ratio(rest, model(ids, use_cache=False).logits[:, split:].double())
