"""Routed experts: fewer of them, and fewer neurons in each."""

import copy
import pickle

import pytest
import torch
from transformers import AutoModel

import pyprune
from pyprune.capture.channels import collect_channels
from pyprune.capture.masking import masked
from pyprune.core.anatomy import Anatomy, Block
from pyprune.core.errors import InputError
from pyprune.core.plan import Plan
from pyprune.core.scores import Scores
from pyprune.core.units import UnitCost, UnitGroup
from pyprune.models.adapter import adapter_for
from pyprune.models.inputs import example_inputs
from pyprune.search.separable import search
from pyprune.slicing.check import max_difference
from pyprune.slicing.slice import slice_
from pyprune.testing.models import tiny_model

EXPERTS, NEURONS = "layers.1.experts", "layers.1.neurons"


def plan_for(anatomy, **kept):
    plan = Plan.keep_all(anatomy)
    plan.kept |= {f"layers.1.{axis}": torch.tensor(units, dtype=torch.int64) for axis, units in kept.items()}
    return plan


@torch.no_grad()
def run(model):
    return model(**example_inputs(model), use_cache=False).last_hidden_state


def sliced(model, **kept):
    adapter = adapter_for(model)
    return slice_(copy.deepcopy(model), adapter, plan_for(adapter.anatomy(model), **kept))


@pytest.mark.parametrize("variant", ["mixtral", "qwen3_moe"])
def test_fewer_experts_than_a_token_passes(variant):
    model = tiny_model(variant, dtype=torch.float64)
    anatomy = adapter_for(model).anatomy(model)
    small = sliced(model, experts=[2])
    router, experts = small.layers[1].mlp.gate, small.layers[1].mlp.experts
    assert (router.top_k, router.num_experts, experts.num_experts, len(router.weight)) == (1, 1, 1, 1)
    assert small.layers[0].mlp.gate.top_k == model.config.num_experts_per_tok
    with masked(model, anatomy, plan_for(anatomy, experts=[2])):
        assert max_difference(run(model), run(small)) < 1e-12
    again = sliced(small, neurons=[0, 3])
    assert again.layers[1].mlp.experts.down_proj.shape[::2] == (1, 2)


def test_masks_of_experts_and_neurons_are_factors_unless_they_are_zero():
    model = tiny_model("mixtral", dtype=torch.float64)
    anatomy = adapter_for(model).anatomy(model)
    dense = run(model)
    with masked(model, anatomy, {EXPERTS: torch.full((4,), 2.0), NEURONS: torch.full((28,), 0.5)}):
        assert max_difference(run(model), dense) < 1e-12
    with masked(model, anatomy, {EXPERTS: torch.tensor([1.0, 0.0, 1e-9, 0.0])}):
        nearly = run(model)
    assert max_difference(nearly, dense) > 1e-3
    mask = torch.ones(28, dtype=torch.float64, requires_grad=True)
    with masked(model, anatomy, {NEURONS: mask}):
        model(**example_inputs(model), use_cache=False).last_hidden_state.sum().backward()
    assert (mask.grad != 0).all()


def test_masks_are_gone_after_an_exception():
    model = tiny_model("qwen3_moe")
    before, dense = dict(model.named_parameters()), run(model)
    anatomy = adapter_for(model).anatomy(model)

    def fail(*_):
        raise RuntimeError("midway")

    handle = model.layers[1].mlp.experts.act_fn.register_forward_hook(fail)
    with (
        pytest.raises(RuntimeError, match="midway"),
        masked(model, anatomy, plan_for(anatomy, experts=[0], neurons=[1])),
    ):
        run(model)
    handle.remove()
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    assert model.layers[1].mlp.gate.top_k == 3
    assert max_difference(run(model), dense) == 0


@pytest.mark.parametrize("width", [3, 8, 16])
def test_the_default_kernel_runs_whatever_the_width(width, tmp_path):
    small = sliced(tiny_model("mixtral"), experts=[0, 1, 3], neurons=list(range(width)))
    expected = run(small)
    small.save_pretrained(tmp_path)
    reloaded = AutoModel.from_pretrained(tmp_path)
    kernels = [layer.mlp.experts.config._experts_implementation for layer in reloaded.layers]
    assert kernels == ["grouped_mm", "eager" if width % 8 else "grouped_mm", "grouped_mm"]
    assert max_difference(run(reloaded), expected) < 1e-4


@pytest.mark.parametrize("neurons", [[], [2, 5, 6]])
def test_pruned_experts_are_pruned_again_copied_pickled_and_reloaded(neurons, tmp_path):
    small = sliced(sliced(tiny_model("qwen3_moe"), experts=[1, 2, 4]), experts=[0, 2], neurons=neurons)
    kinds, expected = [type(m) for m in small.modules()], run(small)
    small.save_pretrained(tmp_path)
    reloaded = AutoModel.from_pretrained(tmp_path, experts_implementation="eager")
    for twin in (copy.deepcopy(small), pickle.loads(pickle.dumps(small)), reloaded):
        assert [type(m) for m in twin.modules()] == kinds
        assert max_difference(run(twin), expected) == 0


def test_the_last_expert_stays():
    model = tiny_model("mixtral")
    anatomy = adapter_for(model).anatomy(model)
    plan = plan_for(anatomy, experts=[])
    with pytest.raises(InputError, match=r"layers.1.experts must keep at least 1 of 4 units"):
        slice_(model, adapter_for(model), plan)
    with (
        pytest.raises(InputError, match=r"mask of layers.1.experts: fewer than 1 units are not 0"),
        masked(model, anatomy, {EXPERTS: torch.zeros(4)}),
    ):
        pass
    scores = Scores({g.name: torch.zeros(g.size, dtype=torch.float64) for g in anatomy.groups}, {})
    kept = search(scores, anatomy, {"params": 0.1}, 8.0)
    assert all(count >= 1 for name, count in kept.counts.items() if name.endswith("experts"))


def test_costs_of_experts_and_their_neurons_multiply():
    """Layer with hidden width 10, 4 experts of 6 neurons with 3 weights to each channel, 2 chosen."""
    router = UnitGroup("e", "experts", 0, 4, 1, (), UnitCost(10))
    neurons = UnitGroup("n", "neurons", 0, 6, 1, (), UnitCost(120, share=0.5, experts="e", chosen=2))
    blocks = tuple(Block("", "", (), None, group) for group in (router, neurons))
    anatomy = Anatomy("x", (), blocks)
    assert anatomy.params() == 4 * 10 + 4 * 6 * 30
    assert anatomy.params({"e": 3, "n": 5}) == 3 * 10 + 3 * 5 * 30
    assert anatomy.flops(7.0) == 2 * 7 * (4 * 10 + 2 * 6 * 30)
    assert anatomy.flops(7.0, {"e": 3, "n": 5}) == 2 * 7 * (3 * 10 + 2 * 5 * 30)
    assert anatomy.flops(7.0, {"e": 1, "n": 5}) == 2 * 7 * (10 + 5 * 30)


def test_what_experts_have_no_place_for_is_refused():
    model = tiny_model("mixtral")
    anatomy = adapter_for(model).anatomy(model)
    with pytest.raises(
        InputError, match=r"channel statistics: not possible for layers.0.experts, since routed experts"
    ):
        collect_channels(model, anatomy, [])
    model = tiny_model("qwen3_moe", output_router_logits=True)
    with pytest.raises(InputError, match="output_router_logits=True cannot be pruned: its balancing loss"):
        adapter_for(model).anatomy(model)


def test_experts_are_scored_by_the_data():
    model = tiny_model("mixtral", "AutoModelForCausalLM")
    generator = torch.Generator().manual_seed(0)
    rows = [{"input_ids": torch.randint(3, 99, (12,), generator=generator)} for _ in range(8)]
    with pytest.raises(InputError, match=r"tuning='refit': not possible for layers.0.experts, .*tuning=\"none\""):
        pyprune.prune(model, {"params": 0.7}, rows, recipe="kwon")
    result = pyprune.prune(model, {"params": 0.7}, rows, recipe="kwon", tuning="none")
    assert result.scores.meta["criterion"] == "fisher"
    assert all(bool((values > 0).all()) for values in result.scores.values.values())
    assert all(check.equal for check in pyprune.verify_model(model, result.plan, result.pruned))
