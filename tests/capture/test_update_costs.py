"""Measured costs of weight changes against models whose weights are changed."""

import copy

import pytest
import torch

from pyprune.calibration import calibration_data
from pyprune.capture.divergence import Divergence
from pyprune.capture.outputs import run
from pyprune.capture.update_costs import update_costs
from pyprune.core.errors import NumericsError
from pyprune.core.layers import matrix
from pyprune.models.adapter import adapter_for
from pyprune.testing.models import tiny_model
from pyprune.testing.numerics import ratio

VARIANTS = [("bert", None), ("llama", "AutoModelForCausalLM"), ("gpt2", "AutoModelForCausalLM"), ("t5", None)]


def setting(variant, head=None):
    model = tiny_model(variant, head, torch.float64) if head else tiny_model(variant, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    rows = [{"input_ids": torch.randint(3, 99, (n,), generator=generator)} for n in (9, 4, 9, 6)]
    if model.config.is_encoder_decoder:
        rows = [{**row, "decoder_input_ids": row["input_ids"].flip(0)} for row in rows]
    samples, _ = calibration_data(model, None, rows)
    anatomy = adapter_for(model).anatomy(model)
    updates = {
        block.units.name: torch.randn(3, *matrix(model.get_submodule(block.projection)).T.shape, generator=generator)
        for block in anatomy.blocks
    }
    return model, anatomy, samples, Divergence(head is not None, model.config, 1.0), updates


@pytest.mark.parametrize(("variant", "head"), VARIANTS)
@pytest.mark.parametrize("padding", [0.0, 1.0])
@torch.no_grad()
def test_costs_are_divergences_of_changed_models(variant, head, padding):
    model, anatomy, samples, divergence, updates = setting(variant, head)
    found = update_costs(model, anatomy, samples.batches(10**6, padding), divergence, updates)
    for block in anatomy.blocks:
        expected = torch.zeros(3, dtype=torch.float64)
        for k, change in enumerate(updates[block.units.name]):
            changed = copy.deepcopy(model)
            matrix(changed.get_submodule(block.projection)).add_(change.T)
            for batch in samples.batches():
                divergence.dense = divergence.said(run(model, batch.inputs), batch)
                expected[k] += divergence(run(changed, batch.inputs), batch)
        assert (expected > 0).all()
        ratio(found[block.units.name], expected, torch.float32)


def test_layers_in_front_run_once_and_the_model_is_left_as_it_was():
    model, anatomy, samples, divergence, updates = setting("bert")
    model.train()
    before, calls = copy.deepcopy(model.state_dict()), []
    handle = model.get_submodule(anatomy.blocks[0].projection).register_forward_hook(lambda *_: calls.append(1))
    last = anatomy.blocks[-1].units.name
    update_costs(model, anatomy, [samples.collate(range(4))], divergence, {last: updates[last]})
    handle.remove()
    assert len(calls) == 2  # of the dense model, and for all changes
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_prediction_that_is_not_finite_is_an_error():
    model, anatomy, samples, divergence, updates = setting("bert")
    name = anatomy.blocks[0].units.name
    with pytest.raises(NumericsError, match=f"NaN or Inf when {name} is changed"):
        update_costs(model, anatomy, samples.batches(), divergence, {name: updates[name] * float("nan")})
