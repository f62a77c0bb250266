"""Criteria without data, unit by unit, and the registry."""

import copy

import pytest
import torch

from pyprune.core.errors import InputError
from pyprune.importance import CRITERIA
from pyprune.importance.registry import Evidence, criterion
from pyprune.models.adapter import adapter_for
from pyprune.slicing.slice import slice_
from pyprune.testing import numerics
from pyprune.testing.models import VARIANTS, random_plan, tiny_model


def evidence(model, seed=0):
    return Evidence(model, adapter_for(model).anatomy(model), None, seed)


def weights_of_unit(model, group, unit):
    """Every weight that goes with one unit, cut out with slices."""
    for cut in group.cuts:
        channels = slice(unit * cut.width, (unit + 1) * cut.width)
        if cut.tensor.endswith("weight"):
            weight = model.get_parameter(cut.tensor)
            yield weight[:, channels] if cut.dim == 1 else weight[channels]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("pruned", [False, True])
def test_magnitude_is_the_norm_of_what_goes(variant, pruned):
    model = tiny_model(variant, dtype=torch.float64)
    if pruned:
        slice_(model, adapter_for(model), random_plan(evidence(model).anatomy))
    found = CRITERIA["magnitude"].values(evidence(model))
    for g in evidence(model).anatomy.groups:
        assert found[g.name].shape == (g.size,)
        for unit in range(g.size):
            parts = [w.detach().square().sum() for w in weights_of_unit(model, g, unit)]
            numerics.ratio(found[g.name][unit], torch.stack(parts).sum())


def test_magnitude_counts_each_weight_of_a_block_once():
    model = tiny_model("llama", dtype=torch.float64)
    found = CRITERIA["magnitude"].values(evidence(model))
    total = sum(w.square().sum() for n, w in model.named_parameters() if "proj.weight" in n)
    numerics.ratio(torch.stack([v.sum() for v in found.values()]).sum(), total.detach())


def test_removing_a_unit_removes_its_weights():
    model = tiny_model("qwen3")
    for g in evidence(model).anatomy.groups:
        assert sum(w.numel() for w in weights_of_unit(model, g, 0)) == g.cost.params


def test_random_scores_follow_the_seed_and_the_units_size():
    model = tiny_model("bert")
    first, again, other = (CRITERIA["random"].values(evidence(model, seed)) for seed in (0, 0, 1))
    for g in evidence(model).anatomy.groups:
        numerics.exact(first[g.name], again[g.name])
        assert not torch.equal(first[g.name], other[g.name])
        assert (first[g.name] >= 0).all()
        assert (first[g.name] <= g.cost.params).all()


def test_criteria_leave_the_model_alone():
    model = tiny_model("bert")
    before = copy.deepcopy(model.state_dict())
    for name in ("magnitude", "random"):
        assert not CRITERIA[name].needs_data
        assert all(not v.requires_grad for v in CRITERIA[name].values(evidence(model)).values())
    for name, value in model.state_dict().items():
        numerics.exact(value, before[name])


def test_an_unknown_criterion_is_answered_with_the_known_ones():
    with pytest.raises(InputError, match="unknown criterion 'wanda'; known: fisher, fisher_batch, flap, magnitude, "):
        CRITERIA["wanda"]


def test_a_criterion_is_registered_once():
    with pytest.raises(ValueError, match="'magnitude' is registered already"):
        criterion("magnitude")(lambda evidence: {})
