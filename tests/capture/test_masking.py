"""Masks: each unit's channels times its number, and only inside the context."""

import pytest
import torch
from mask_gradients import anatomy_of, samples_of

from pyprune.capture.masking import masked
from pyprune.core.errors import InputError, MismatchError
from pyprune.core.plan import Plan
from pyprune.testing import numerics
from pyprune.testing.models import random_plan, tiny_model


def run(model):
    with torch.no_grad():
        return model(samples_of("", lengths=(8,)).inputs[0]["input_ids"][None]).last_hidden_state


def scaled_by_hand(model, masks):
    """The same by the weights: columns of the projections times the masks."""
    with torch.no_grad():
        for block in anatomy_of(model).blocks:
            channels = masks[block.units.name].repeat_interleave(block.units.width)
            model.get_submodule(block.projection).weight.mul_(channels)
    return model


@pytest.mark.parametrize("variant", ["bert", "distilbert", "llama", "qwen3"])
def test_masks_scale_the_projections_inputs(variant):
    model = tiny_model(variant, dtype=torch.float64)
    plan = random_plan(anatomy_of(model))
    generator = torch.Generator().manual_seed(0)
    real = {g.name: torch.randn(g.size, generator=generator, dtype=torch.float64) for g in anatomy_of(model).groups}
    dense = run(model)
    for masks, values in ((plan, {n: plan.mask(n).double() for n in plan.kept}), (real, real)):
        with masked(model, anatomy_of(model), masks) as same:
            assert same is model
            found = run(model)
        numerics.ratio(found, run(scaled_by_hand(tiny_model(variant, dtype=torch.float64), values)))
        assert not torch.equal(found, dense)
    numerics.exact(run(model), dense)


def test_groups_that_are_not_named_stay_dense():
    model = tiny_model("bert", dtype=torch.float64)
    masks = {g.name: torch.ones(g.size) for g in anatomy_of(model).groups} | {"layers.1.heads": torch.zeros(4)}
    with masked(model, anatomy_of(model), {"layers.1.heads": torch.zeros(4)}):
        found = run(model)
    with masked(model, anatomy_of(model), masks):
        numerics.exact(found, run(model))


def test_hooks_are_gone_after_an_exception():
    model = tiny_model("bert")
    dense = run(model)
    with pytest.raises(KeyError), masked(model, anatomy_of(model), random_plan(anatomy_of(model))):
        raise KeyError
    assert not any(module._forward_pre_hooks for module in model.modules())
    numerics.exact(run(model), dense)


@pytest.mark.parametrize(
    ("masks", "error", "message"),
    [
        ({"layers.9.heads": torch.ones(4)}, InputError, r"layers\.9\.heads: \[4\], the model has no units"),
        ({"layers.1.heads": torch.ones(5)}, InputError, r"layers\.1\.heads: \[5\], the model has 4 units"),
        (Plan({"a": torch.tensor([0])}, {"a": 1}, 1.0), MismatchError, "another model"),
    ],
)
def test_masks_of_another_model_are_refused(masks, error, message):
    model = tiny_model("bert")
    with pytest.raises(error, match=message), masked(model, anatomy_of(model), masks):
        pass
