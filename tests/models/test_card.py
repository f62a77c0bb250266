import pytest
import yaml

import pyprune
from pyprune.core.plan import Plan
from pyprune.models.adapter import adapter_for
from pyprune.models.card import card, needs_pyprune
from pyprune.testing.models import random_plan, tiny_model


def pruned(variant, uniform=False):
    model = tiny_model(variant)
    anatomy = adapter_for(model).anatomy(model)
    plan = random_plan(anatomy)
    if uniform:
        plan = Plan.keep_all(anatomy)
        plan.kept |= {g.name: plan.kept[g.name][:8] for g in anatomy.groups if g.axis == "neurons"}
        plan.meta["uniform"] = True
    plan.meta["criterion"] = "fisher"
    plan.length = 31.5
    small = pyprune.apply(model, plan)
    return small, adapter_for(small).anatomy(small), plan


def test_the_card_says_what_stayed_and_how_it_loads():
    model, anatomy, plan = pruned("llama")
    text = card(model, anatomy, plan, "someone/llama")
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "transformers",
        "tags": ["pyprune", "pruned"],
        "base_model": "someone/llama",
    }
    assert "import pyprune  # teaches transformers" in body
    assert "Without `import pyprune` transformers refuses the checkpoint" in body
    neurons = [plan.counts[f"layers.{i}.neurons"] for i in range(3)]
    assert f"| layers.*.neurons | 24 | {neurons[0]}, {neurons[1]}, {neurons[2]} |" in body
    dense = adapter_for(tiny_model("llama")).anatomy(tiny_model("llama"))
    assert f"- {plan.cost(dense, 'flops') / dense.flops(31.5):.1%} of the blocks' FLOPs, counted at 31.5 tokens" in body
    assert f"- {plan.cost(dense, 'params') / dense.params():.1%} of the blocks' weights" in body
    assert "criterion fisher" in body


def test_a_uniform_checkpoint_needs_no_pyprune_and_its_card_says_so():
    model, anatomy, plan = pruned("bert", uniform=True)
    assert not needs_pyprune(model.config)
    text = card(model, anatomy, plan, None)
    assert "import pyprune" not in text
    assert "base_model" not in text
    assert needs_pyprune(pruned("bert")[0].config)


@pytest.mark.parametrize("variant", ["bert", "llama"])
def test_a_saved_checkpoint_has_its_card(variant, tmp_path):
    model, anatomy, plan = pruned(variant)
    pyprune.save(model, tmp_path / "small", plan=plan)
    assert (tmp_path / "small/README.md").read_text() == card(model, anatomy, plan, None)
