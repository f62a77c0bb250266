"""What is particular to models of images: stages, windows, convolutions, and attention with forwards of its own."""

import copy

import pytest
import torch
import transformers

from pyprune.capture.masking import masked
from pyprune.core.plan import Plan
from pyprune.models.adapter import adapter_for
from pyprune.models.inputs import example_inputs
from pyprune.models.loading import load
from pyprune.slicing.check import max_difference
from pyprune.slicing.slice import slice_
from pyprune.testing.models import random_plan, tiny_model

ROUNDING = 1e-10  # float64
IMAGES = ("vit", "deit", "dinov2", "dinov2-swiglu", "swin", "swin-padded", "segformer", "mask2former")


def sliced(variant, seed=0, **options):
    model = tiny_model(variant, dtype=torch.float64, **options)
    adapter = adapter_for(model)
    return slice_(model, adapter, random_plan(adapter.anatomy(model), seed))


@torch.no_grad()
def run(model, **options):
    inputs = example_inputs(model)
    return model(**{k: v.to(model.dtype) for k, v in inputs.items()}, **options)


@pytest.mark.parametrize("variant", IMAGES)
def test_a_pruned_model_is_pruned_again_and_copied(variant):
    model = sliced(variant)
    anatomy = adapter_for(model).anatomy(model)
    plan = random_plan(anatomy, seed=2)
    with masked(model, anatomy, plan):
        expected = run(model)
    found = run(slice_(model, adapter_for(model), plan))
    assert max_difference(expected, found) < ROUNDING
    assert max_difference(found, run(copy.deepcopy(model))) == 0


@pytest.mark.parametrize("variant", IMAGES)
def test_a_pruned_model_is_trained(variant):
    model = sliced(variant).train()
    outputs = model(**{k: v.double() for k, v in example_inputs(model).items()})
    sum(t.square().sum() for t in outputs.values() if isinstance(t, torch.Tensor)).backward()
    for block in adapter_for(model).anatomy(model).blocks:
        output = model.get_submodule(block.projection)
        assert output.weight.numel() == 0 or output.weight.grad.abs().sum() > 0, block.projection
        assert output.bias.grad.abs().sum() > 0, block.projection


@pytest.mark.parametrize(
    ("variant", "heads"),
    [
        ("vit", [0, 3, 3]),
        ("swin", [0, 4]),  # of the last layer of each stage
        ("segformer", [0, 2, 3, 2]),
        ("mask2former", [2, 3]),
    ],
)
def test_attentions_are_still_recorded(variant, heads):
    model = tiny_model(variant, dtype=torch.float64, attention="eager")
    adapter = adapter_for(model)
    anatomy = adapter.anatomy(model)
    of_model = [g.name for g in anatomy.groups if g.axis == "heads" and "pixel" not in g.name]
    recorded = of_model[1::2] if variant == "swin" else of_model
    plan = Plan.keep_all(anatomy)
    plan.kept |= {name: torch.arange(count) for name, count in zip(recorded, heads, strict=True)}
    output = run(slice_(model, adapter, plan), output_attentions=True)
    assert [weights.shape[1] for weights in output.attentions] == heads


def test_an_image_of_another_size():
    model = tiny_model("vit", dtype=torch.float64)
    adapter = adapter_for(model)
    anatomy = adapter.anatomy(model)
    plan = random_plan(anatomy)
    images = torch.randn(2, 3, 24, 16, dtype=torch.float64)
    with torch.no_grad(), masked(model, anatomy, plan):
        expected = model(images, interpolate_pos_encoding=True)
    slice_(model, adapter, plan)
    with torch.no_grad():
        assert max_difference(expected, model(images, interpolate_pos_encoding=True)) < ROUNDING


def test_a_depthwise_convolution_remembers_its_channels():
    model = tiny_model("segformer")
    adapter = adapter_for(model)
    plan = Plan.keep_all(adapter.anatomy(model))
    plan.kept["layers.0.0.neurons"] = torch.tensor([1, 5, 6])
    slice_(model, adapter, plan)
    convolution = model.stages[0].blocks[0].mlp.dwconv.dwconv
    assert (convolution.groups, convolution.in_channels, convolution.out_channels) == (3, 3, 3)
    assert convolution.weight.shape == (3, 1, 3, 3)
    assert convolution.bias.shape == (3,)


def test_tokens_of_a_stage_follow_from_the_image():
    """Swin-T at 224 pixels, SegFormer-B0 at the 512 of its processor: the published feature maps."""
    swin = transformers.SwinModel(transformers.SwinConfig(depths=[1, 1, 1, 1]))
    costs = [b.units.cost for b in adapter_for(swin).anatomy(swin).blocks if b.units.axis == "heads"]
    assert [cost.tokens for cost in costs] == [56**2, 28**2, 14**2, 7**2]
    assert {cost.keys for cost in costs} == {49}
    segformer = transformers.SegformerModel(transformers.SegformerConfig(depths=[1, 1, 1, 1]))
    costs = [b.units.cost for b in adapter_for(segformer).anatomy(segformer).blocks if b.units.axis == "heads"]
    assert [cost.tokens for cost in costs] == [128**2, 64**2, 32**2, 16**2]
    assert {cost.keys for cost in costs} == {256}


@pytest.mark.parametrize(("variant", "usual"), [("segformer", 512), ("resnet", 224)])
def test_the_size_of_images_can_be_said_where_configs_know_none(variant, usual, tmp_path):
    model = tiny_model(variant, image_size=None)
    adapter = adapter_for(model)
    flops = adapter.anatomy(model).flops(1)
    model.config.image_size = usual
    assert adapter.anatomy(model).flops(1) == flops
    model.config.image_size = [usual // 2, usual]
    halved = adapter.anatomy(model).flops(1)
    assert halved < 0.6 * flops
    model.save_pretrained(tmp_path)
    assert adapter.anatomy(load(tmp_path)[0]).flops(1) == halved


def test_windows_that_are_padded_cost_attention_more_tokens():
    model = tiny_model("swin-padded")
    heads, neurons, *_ = adapter_for(model).anatomy(model).groups
    assert (heads.cost.tokens, neurons.cost.tokens) == (12**2, 10**2)


def test_pixel_decoder_decoder_and_backbone_of_mask2former_are_all_found():
    model = tiny_model("mask2former")
    names = [group.name for group in adapter_for(model).anatomy(model).groups]
    for name in (
        "pixel_decoder.layers.1.heads",
        "pixel_decoder.layers.1.neurons",
        "decoder.layers.0.heads",
        "decoder.layers.1.neurons",
        "pixel_level_module.encoder.layers.3.0.heads",
        "pixel_level_module.encoder.layers.0.0.neurons",
    ):
        assert name in names
    assert not any("cross" in name for name in names)


def test_models_without_sdpa_are_loaded(tmp_path):
    model = sliced("mask2former")
    model.save_pretrained(tmp_path)
    loaded, tokenizer = load(tmp_path)
    assert tokenizer is None
    assert max_difference(run(model), run(loaded)) < ROUNDING
