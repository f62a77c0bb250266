"""The axes that belong to no block, through the public functions: score, plan, prune, verify, save."""

import pytest
import torch
from fresh import fresh, sizes
from safetensors.torch import load_file

import pyprune
from pyprune.core.batches import Samples
from pyprune.core.errors import InputError
from pyprune.core.plan import Plan
from pyprune.models.adapter import adapter_for
from pyprune.slicing.slice import slice_
from pyprune.testing.models import tiny_model

WEIGHTS = {"recipe": "kwon", "criterion": "magnitude"}


def samples(count=8):
    generator = torch.Generator().manual_seed(0)
    return Samples([{"input_ids": torch.randint(3, 99, (9,), generator=generator)} for _ in range(count)], None, {})


def test_magnitude_is_the_norm_of_what_goes_with_a_unit():
    model = tiny_model("bert")
    scores = pyprune.score(model, samples(), axes=["layers", "hidden"], **WEIGHTS).values
    layer = model.encoder.layer[1]
    matrices = [p.double().square().sum() for p in layer.parameters() if p.dim() > 1]
    assert scores["layers"][1] == pytest.approx(sum(matrices).item())
    adapter = adapter_for(model)
    plan = Plan.keep_all(adapter.anatomy(model, axes=["hidden"]))
    plan.kept["hidden"] = torch.tensor([u for u in range(32) if u != 5])
    before = sum(p.double().square().sum() for p in model.parameters() if p.dim() > 1)
    slice_(model, adapter, plan)
    after = sum(p.double().square().sum() for p in model.parameters() if p.dim() > 1)
    # The pooler's weight is square: its entry on the diagonal counts for its row and for its column.
    double = (before - after).item()
    assert double <= scores["hidden"][5].item() <= double + 4


def test_models_that_lost_layers_alone_load_without_pyprune(tmp_path):
    counts = {}
    for deploy, axes, share in (("layers", ["layers"], 0.7), ("uniform", ["layers", "neurons"], 0.45)):
        model, out = tiny_model("llama", "AutoModelForCausalLM"), tmp_path / deploy
        given = {"axes": axes, "deploy": deploy, "tuning": "none", "out": out, **WEIGHTS}
        result = pyprune.prune(model, {"flops": share}, samples(), **given)
        assert result.pruned.config.num_hidden_layers == len(result.plan.kept["layers"]) < 3
        assert all(check.equal for check in pyprune.verify_model(model, result.plan, result.pruned))
        assert all(check.equal for check in pyprune.verify_checkpoint(out))
        assert "import pyprune" not in (out / "README.md").read_text()
        counts[out] = sum(t.numel() for t in load_file(out / "model.safetensors").values())
    assert fresh(sizes, "AutoModelForCausalLM", list(counts)) == list(counts.values())


def test_width_and_neurons_by_name(tmp_path):
    model = tiny_model("bert", "AutoModelForSequenceClassification")
    axes = ["neurons", "hidden"]
    scores = pyprune.score(model, samples(), axes=axes, **WEIGHTS)
    plan = pyprune.plan(model, scores, {"params": 0.5}, axes=axes, recipe="kwon")
    anatomy = adapter_for(model).anatomy(model, axes)
    assert plan.cost(anatomy, "params") <= 0.5 * anatomy.params()
    assert all(plan.counts[g.name] == g.size for g in anatomy.groups if g.axis == "heads")
    assert plan.counts["hidden"] < 32
    assert "hidden" in plan.explain(anatomy)
    plan.save(tmp_path / "plan.json")
    small = pyprune.apply(model, Plan.load(tmp_path / "plan.json"))
    pyprune.save(small, tmp_path / "small", plan=plan)
    assert "of 32 of `hidden`" in (tmp_path / "small/README.md").read_text()
    assert all(check.equal for check in pyprune.verify_model(model, plan, small))


def test_what_the_axes_cannot_do_is_said_before_anything_is_done(tmp_path):
    model, out = tiny_model("bert"), tmp_path / "small"
    with pytest.raises(InputError, match="tuning='refit': not possible for the axis hidden"):
        pyprune.prune(model, {"flops": 0.5}, samples(), axes=["hidden"], out=out, **WEIGHTS)
    with pytest.raises(InputError, match=r"criterion='fisher': not possible for the axis hidden; .*weights alone"):
        pyprune.score(model, samples(), axes=["hidden"], recipe="kwon")
    with pytest.raises(InputError, match=r"recipe='surgeon': not possible for the axis layers; use .*--recipe kwon"):
        pyprune.score(model, samples(), axes=["layers"])
    with pytest.raises(InputError, match="criterion='wanda_sp': not possible for the axis layers"):
        pyprune.score(model, samples(), axes=["layers"], recipe="kwon", criterion="wanda_sp")
    plan = Plan.keep_all(adapter_for(model).anatomy(model, ["layers"]))
    with pytest.raises(InputError, match="tuning='refit': not possible for the axis layers"):
        pyprune.tune(model, model, plan, samples())
    with pytest.raises(InputError, match="axis 'vocabulary': the model has heads, hidden, layers, neurons, qk_dims"):
        pyprune.prune(model, {"flops": 0.5}, samples(), axes=["vocabulary"], out=out)
    scores = pyprune.score(model, samples(), **WEIGHTS)
    with pytest.raises(InputError, match="scores: none for hidden"):
        pyprune.plan(model, scores, {"flops": 0.5}, axes=["hidden"])
    assert not list(tmp_path.iterdir())


def test_one_config_of_two_stacks_cannot_count_the_layers_of_one():
    model = tiny_model("blip", "AutoModelForVisualQuestionAnswering")
    with pytest.raises(InputError, match="axis 'layers' of BlipTextModel: one config describes"):
        adapter_for(model).anatomy(model, axes=["layers"])
