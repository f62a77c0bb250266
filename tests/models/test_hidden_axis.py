"""The hidden width over the whole zoo: masked = sliced = reloaded by another process, and costs are what is counted."""

import copy
import re

import pytest
import torch
from matrix import ROUNDING, check_generation, check_reload, inputs_of, run, save
from torch.utils.flop_counter import FlopCounterMode

from pyprune.capture.masking import masked
from pyprune.core.errors import InputError
from pyprune.core.plan import Plan
from pyprune.models.adapter import adapter_for
from pyprune.models.inputs import example_inputs
from pyprune.slicing.check import max_difference
from pyprune.slicing.slice import slice_
from pyprune.testing.models import random_plan, tiny_config, tiny_model
from pyprune.testing.zoo import ZOO

# What cannot lose hidden width, with a part of the reason. Composites have a width for each member.
COMPOSITES = ("pix2struct", "encoder-decoder", "clip", "siglip", "git", "blip", "blip-caption", "vit-gpt2", "vit-bert")
SOURCES = ("gpt2-cross", "bert-cross", "roberta-cross", "blip-text", "pix2struct-text")
REFUSED = {
    **dict.fromkeys(
        (*COMPOSITES, "mask2former", "mask2former-pre-norm", "segformer", "swin", "swin-padded"), "has heads"
    ),
    "whisper": "has heads",
    **dict.fromkeys(SOURCES, "reads another model's hidden states"),
    **dict.fromkeys(("mixtral", "mixtral-one", "qwen3_moe", "qwen3_moe-mixed"), "routed experts"),
    "olmo2": "q_proj is part of no block",
    "siglip-vision": "head.attention is a MultiheadAttention",
}
# Those with a width for each stage: test_stage_widths.py.
STAGES = ("resnet", "resnet-basic", "resnet-early", "convnext", "convnext-unscaled")
VARIANTS = [variant for variant in ZOO if variant not in (*REFUSED, *STAGES)]
REFUSED_HEADS = {
    ("bart", "AutoModelForCausalLM"): "reads another model's hidden states",
    ("dinov2", "AutoModelForImageClassification"): "several hidden states side by side",
    ("dinov2-swiglu", "AutoModelForImageClassification"): "several hidden states side by side",
    ("vilt", "ViltForQuestionAnswering"): "several hidden states side by side",
}
HEADS = [(variant, head) for variant in VARIANTS for head in ZOO[variant].heads if (variant, head) not in REFUSED_HEADS]


def dense_and_anatomy(variant, head=None, dtype=torch.float64, **options):
    model = tiny_model(variant, head or ZOO[variant].heads[0], dtype, **options)
    return model, adapter_for(model), adapter_for(model).anatomy(model, axes=["hidden"])


def made(kind, anatomy):
    plan = Plan.keep_all(anatomy) if kind == "hidden" else random_plan(anatomy, seed=3, emptied=kind == "emptied")
    plan.kept["hidden"] = torch.randperm(anatomy.hidden.units.size)[:17].sort().values
    return plan


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return tmp_path_factory.mktemp("hidden")


@pytest.mark.parametrize("variant", VARIANTS)
def test_masked_equals_sliced(variant, checkpoints):
    dense, adapter, anatomy = dense_and_anatomy(variant)
    inputs = inputs_of(dense)
    whole = run(dense, inputs)
    for kind in ("hidden", "emptied"):
        plan = made(kind, anatomy)
        with masked(dense, anatomy, plan):
            expected = run(dense, inputs)
        model = slice_(copy.deepcopy(dense), adapter, plan)
        found = run(model, inputs)
        assert max_difference(expected, found, plan) < ROUNDING, kind
        assert max_difference(whole, found, plan) > 1e-6, kind
        assert {g.name: g.size for g in adapter.anatomy(model, axes=["hidden"]).groups} == plan.counts, kind
        if kind == "emptied":
            save(model, inputs, found, checkpoints / variant)
    assert max_difference(whole, run(dense, inputs)) == 0  # the masks are gone
    kept = slice_(copy.deepcopy(dense), adapter, Plan.keep_all(anatomy))
    assert max_difference(whole, run(kept, inputs)) == 0
    assert kept.config.to_dict() == dense.config.to_dict()


@pytest.mark.parametrize(("variant", "head"), [case for case in HEADS if case[1] != ZOO[case[0]].heads[0]])
def test_masked_equals_sliced_under_every_head(variant, head, checkpoints):
    dense, adapter, anatomy = dense_and_anatomy(variant, head)
    inputs = inputs_of(dense)
    plan = made("random", anatomy)
    with masked(dense, anatomy, plan):
        expected = run(dense, inputs)
    model = slice_(dense, adapter, plan)
    found = run(model, inputs)
    assert max_difference(expected, found, plan) < ROUNDING
    save(model, inputs, found, checkpoints / f"{variant}-{head}")


def test_another_process_reloads_all_of_them(checkpoints):
    check_reload(checkpoints)


@pytest.mark.parametrize("variant", VARIANTS)
def test_costs_are_what_is_counted(variant):
    dense, adapter, anatomy = dense_and_anatomy(variant, dtype=torch.float32, attention="eager")
    plan = made("random", anatomy)
    length = 12
    inputs = example_inputs(dense, 1, length)
    if "decoder_input_ids" in inputs:
        inputs["decoder_input_ids"] = torch.zeros(1, length, dtype=torch.int64)
    sliced = slice_(copy.deepcopy(dense), adapter, plan)
    tensors = {c.tensor for b in anatomy.blocks for c in b.units.cuts if dense.get_parameter(c.tensor).dim() > 1}
    weights = [sum(model.get_parameter(name).numel() for name in tensors) for model in (dense, sliced)]
    assert weights == [anatomy.params(), anatomy.params(plan.counts)]
    saved = anatomy.flops(length) - anatomy.flops(length, plan.counts)
    assert flops(dense, anatomy, inputs) - flops(sliced, anatomy, inputs) == pytest.approx(saved, rel=1e-12)


def flops(model, anatomy, inputs):
    """Those of the layers: what stands around them shrinks too, and is no prunable block."""
    with FlopCounterMode(display=False) as counter:
        run(model.requires_grad_(False), inputs)
    counts = counter.get_flop_counts()
    return sum(sum(counts[f"{type(model).__name__}.{path}"].values()) for path in anatomy.layers)


@pytest.mark.parametrize("variant", ["llama-biased", "gpt2", "t5", "bart", "opt"])
def test_tied_weights_stay_tied(variant):
    head = "AutoModelForSeq2SeqLM" if variant in ("t5", "bart") else "AutoModelForCausalLM"
    model, adapter, anatomy = dense_and_anatomy(variant, head)
    slice_(model, adapter, made("hidden", anatomy))
    assert model.get_input_embeddings().weight.shape[1] == 17
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("variant", ["llama", "gpt2", "opt", "t5"])
def test_generation_with_caches(variant):
    head = "AutoModelForSeq2SeqLM" if variant == "t5" else "AutoModelForCausalLM"
    dense, adapter, anatomy = dense_and_anatomy(variant, head, torch.float32)
    plan = made("random", anatomy)
    check_generation(dense, adapter, anatomy, plan)


@pytest.mark.parametrize("variant", ["bert", "llama"])
def test_a_narrow_model_is_pruned_again(variant, tmp_path):
    """Width first, then width, units and a layer of what was left."""
    model, adapter, anatomy = dense_and_anatomy(variant)
    slice_(model, adapter, made("random", anatomy))
    anatomy = adapter.anatomy(model, axes=["hidden", "layers"])
    plan = random_plan(anatomy, seed=8, emptied=False)
    plan.kept |= {"hidden": torch.arange(3, 14), "layers": torch.tensor([0, 2])}
    inputs = inputs_of(model)
    with masked(model, anatomy, plan):
        expected = run(model, inputs)
    slice_(model, adapter, plan)
    found = run(model, inputs)
    assert max_difference(expected, found, plan) < ROUNDING
    model.save_pretrained(tmp_path)
    assert max_difference(found, run(type(model).from_pretrained(tmp_path, dtype=torch.float64), inputs)) < ROUNDING


@pytest.mark.parametrize("variant", REFUSED)
def test_what_has_no_single_width_is_refused(variant):
    with pytest.raises(InputError, match=re.escape(REFUSED[variant])):
        dense_and_anatomy(variant, dtype=torch.float32)


@pytest.mark.parametrize(("variant", "head"), REFUSED_HEADS)
def test_heads_that_cannot_are_refused(variant, head):
    with pytest.raises(InputError, match=REFUSED_HEADS[variant, head]):
        dense_and_anatomy(variant, head, torch.float32)


@pytest.mark.parametrize("change", [{"vocab_size": 32}, {"num_labels": 32}, {"num_attention_heads": 1}])
def test_numbers_that_could_be_the_width_are_refused(change):
    assert tiny_config("bert").hidden_size == 32
    with pytest.raises(InputError, match="is the hidden width too"):
        dense_and_anatomy("bert", "AutoModelForSequenceClassification", torch.float32, **change)


def test_masks_of_the_width_are_whole():
    dense, _, anatomy = dense_and_anatomy("bert")
    mask = torch.ones(32)
    mask[3] = 0.5
    with pytest.raises(InputError, match="must be 0 or 1"), masked(dense, anatomy, {"hidden": mask}):
        pass
