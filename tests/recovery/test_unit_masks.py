"""Masks of units: their gradients, and that folding them changes nothing but the weights behind the units."""

import pytest
import torch

from pyprune.capture.outputs import run
from pyprune.models.adapter import adapter_for
from pyprune.models.inputs import example_inputs
from pyprune.recovery.unit_masks import unit_masks
from pyprune.slicing.check import max_difference
from pyprune.testing.models import tiny_model

# A plain encoder, fused projections of `Conv1D`, grouped queries, cross-attention, experts, convolutions.
MODELS = ("bert", "gpt2", "llama", "t5", "mixtral", "resnet")


def first(outputs):
    return next(value for value in outputs.values() if isinstance(value, torch.Tensor))


@pytest.mark.parametrize("variant", MODELS)
def test_a_folded_model_computes_what_the_masked_one_did(variant):
    model = tiny_model(variant, dtype=torch.float64).eval()
    inputs = example_inputs(model, 2, 8)
    inputs = {name: t.double() if t.is_floating_point() else t for name, t in inputs.items()}
    names = [name for name, _ in model.named_parameters()]
    plain = first(run(model, inputs)).detach()
    with unit_masks(model, adapter_for(model).anatomy(model)) as masks:
        assert len(masks) >= 2
        assert max_difference(plain, first(run(model, inputs)).detach()) == 0
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for mask in masks:
                mask.copy_(1 + 0.5 * torch.randn(mask.shape, generator=generator))
            masked = first(run(model, inputs))
    folded = first(run(model, inputs)).detach()
    assert max_difference(masked, plain) > 1e-3
    assert max_difference(masked, folded) < 1e-10 * masked.abs().max().clamp(min=1)
    assert [name for name, _ in model.named_parameters()] == names


@pytest.mark.parametrize("variant", ["bert", "llama"])
def test_gradients_are_those_of_a_plain_product(variant):
    model = tiny_model(variant, dtype=torch.float64).eval()
    inputs = example_inputs(model, 3, 8)
    anatomy = adapter_for(model).anatomy(model)
    with unit_masks(model, anatomy) as masks:
        first(run(model, inputs)).square().mean().backward()
        found = [mask.grad.double() for mask in masks]
    handles, plain = [], []
    for block in anatomy.blocks:
        mask = torch.ones(block.units.size, dtype=torch.float64, requires_grad=True)
        plain.append(mask)
        width = block.units.width
        handles.append(
            model.get_submodule(block.projection).register_forward_pre_hook(
                lambda _, args, mask=mask, width=width: (args[0] * mask.repeat_interleave(width),)
            )
        )
    first(run(model, inputs)).square().mean().backward()
    for handle in handles:
        handle.remove()
    for ours, mask in zip(found, plain, strict=True):
        assert max_difference(ours, mask.grad) <= 1e-6 * mask.grad.abs().max()  # held in fp32


def test_masks_are_gone_after_an_exception():
    model = tiny_model("bert")
    names = [name for name, _ in model.named_parameters()]

    def fail():
        with unit_masks(model, adapter_for(model).anatomy(model)):
            assert [name for name, _ in model.named_parameters()] != names
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [name for name, _ in model.named_parameters()] == names
    assert not any(module._forward_pre_hooks for module in model.modules())
