"""Reloading in other processes and in other ways, and what it leaves alone."""

import copy
import gc
import json
import logging
import os
import subprocess
import sys

import pytest
import torch
import transformers
from fresh import fresh, reload, told
from matrix import run, save
from transformers.integrations.heterogeneity.configuration_utils import AmbiguousGlobalPerLayerAttributeError

import pyprune
from pyprune.core.errors import MismatchError
from pyprune.models.adapter import adapter_for
from pyprune.models.inputs import example_inputs
from pyprune.slicing.check import max_difference
from pyprune.slicing.slice import slice_
from pyprune.testing.models import random_plan, tiny_config, tiny_model


def pruned(variant, **options):
    model = tiny_model(variant, **options)
    adapter = adapter_for(model)
    return slice_(model, adapter, random_plan(adapter.anatomy(model)))


@pytest.mark.parametrize("first", ["pyprune", "transformers"])
def test_fresh_processes_reload_the_same_bits(first, tmp_path):
    """Whichever is imported first: a forked process has transformers, and another one imports it after pyprune."""
    checkpoints = tmp_path / "checkpoints"
    for variant in ("bert", "llama"):
        model = pruned(variant)
        inputs = example_inputs(model)
        save(model, inputs, run(model, inputs), checkpoints / variant)
    if first == "transformers":
        found, said = fresh(told, tmp_path / "errors", reload, None, checkpoints)
    else:
        code = (
            "import json, pyprune, sys; assert 'transformers' not in sys.modules\n"
            "import fresh; print(json.dumps(fresh.reload(None, sys.argv[1])))"
        )
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", code, str(checkpoints)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        found, said = json.loads(done.stdout), done.stderr
    assert found == {str(checkpoints / variant): [True, [], True] for variant in ("bert", "llama")}
    assert "per-layer attribute" not in said


def test_importing_pyprune_imports_neither_torch_nor_transformers():
    script = "import sys, pyprune; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


@pytest.mark.parametrize("variant", ["bert", "distilbert", "llama"])
def test_dense_models_are_built_as_ever_around_a_reload(variant, tmp_path):
    """No class of transformers is replaced or generated, for dense models before and after, and for dense layers."""
    before = tiny_model(variant)
    pruned(variant).save_pretrained(tmp_path)
    modeling = sys.modules[type(before).__module__]
    names = dict(vars(modeling))
    reloaded = transformers.AutoModel.from_pretrained(tmp_path)
    assert {name: value for name, value in vars(modeling).items() if value is not names[name]} == {}
    after = tiny_model(variant)
    assert [type(m) for m in after.modules()] == [type(m) for m in before.modules()]
    inputs = example_inputs(before)
    assert max_difference(before(**inputs), after(**inputs)) == 0
    assert len(after(**inputs, output_hidden_states=True).hidden_states) == 4
    changed = [type(m).__name__ for m in reloaded.modules() if type(m) not in {type(m) for m in before.modules()}]
    assert len(changed) == 1
    assert changed[0].startswith("Empty")


@pytest.mark.parametrize("variant", ["bert", "distilbert", "llama"])
def test_a_pruned_config_builds_an_initialised_model(variant):
    config = pruned(variant).config
    for model in (transformers.AutoModel.from_config(config), type(tiny_model(variant))(copy.deepcopy(config))):
        assert 0 in {g.size for g in adapter_for(model).anatomy(model).groups}
        assert model.config.to_dict()["per_layer_config"] == config.to_dict()["per_layer_config"]
        output = model(**example_inputs(model)).last_hidden_state
        assert output.isfinite().all()
        assert all(p.isfinite().all() for p in model.parameters())


def test_global_widths_stay_guarded_on_a_reloaded_model(tmp_path):
    pruned("bert").save_pretrained(tmp_path)
    config = transformers.AutoModel.from_pretrained(tmp_path).config
    with pytest.raises(AmbiguousGlobalPerLayerAttributeError):
        _ = config.intermediate_size
    assert "allow_global_per_layer_attribute_access" not in config.to_dict()


def test_a_users_permission_to_read_global_widths_is_kept(tmp_path):
    pruned("bert").save_pretrained(tmp_path)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    config.allow_global_per_layer_attribute_access = True
    assert transformers.AutoModel.from_config(config).config.intermediate_size == 24


def test_transformers_warning_about_global_widths_stays_for_users(tmp_path, caplog):
    config = pruned("distilbert").config
    transformers.AutoModel.from_config(config)
    config.allow_global_per_layer_attribute_access = True
    logger = logging.getLogger("transformers.integrations.heterogeneity.configuration_utils")
    assert logger.filter(logging.LogRecord(logger.name, logging.WARNING, "", 0, "Reading global", None, None))


def test_a_constructor_that_raised_is_forgotten():
    config = pruned("distilbert").config

    class Broken(transformers.DistilBertModel):
        def __init__(self, config):
            super(transformers.DistilBertModel, self).__init__(config)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Broken(config)
    gc.collect()
    logger = logging.getLogger("transformers.integrations.heterogeneity.configuration_utils")
    assert logger.filter(logging.LogRecord(logger.name, logging.WARNING, "", 0, "Reading global", None, None))


def test_more_units_than_the_dense_model_has_are_refused():
    config = tiny_config("llama", per_layer_config={1: {"intermediate_size": 25}})
    with pytest.raises(MismatchError, match=r"layers.1.neurons has 24 units in the model, not 25"):
        transformers.AutoModel.from_config(config)


def test_an_error_in_a_constructor_leaves_the_next_model_alone():
    config = pruned("llama").config
    broken = copy.deepcopy(config)
    broken.hidden_act = "unheard-of"
    with pytest.raises(KeyError):
        transformers.AutoModel.from_config(broken)
    model = transformers.AutoModel.from_config(config)
    assert "allow_global_per_layer_attribute_access" not in model.config.to_dict()
    assert tiny_model("llama").config.is_heterogeneous is False


def test_per_layer_attributes_that_pyprune_does_not_know_are_left_to_transformers():
    config = tiny_config("llama", per_layer_config={1: {"rms_norm_eps": 1e-3}})
    with pytest.raises(AmbiguousGlobalPerLayerAttributeError):
        transformers.AutoModel.from_config(config)


def test_installing_twice_changes_nothing():
    post_init = transformers.PreTrainedModel.post_init
    pyprune.install()
    assert transformers.PreTrainedModel.post_init is post_init


def test_a_reloaded_model_trains_compiles_and_exports(tmp_path):
    pruned("bert").save_pretrained(tmp_path)
    model = transformers.AutoModel.from_pretrained(tmp_path)
    inputs = example_inputs(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(3):
        loss = model(**inputs).last_hidden_state.square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[0]
    model.eval()
    exported = torch.export.export(model, (), kwargs=inputs).module()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        expected = model(**inputs)
        assert max_difference(expected, compiled(**inputs)) == 0
        assert max_difference(expected, exported(**inputs)) < 1e-4


def test_config_entries_are_sparse_and_hold_zeros(tmp_path):
    model = tiny_model("bert")
    adapter = adapter_for(model)
    plan = random_plan(adapter.anatomy(model))
    slice_(model, adapter, plan).save_pretrained(tmp_path)
    entries = json.loads((tmp_path / "config.json").read_text())["per_layer_config"]
    assert entries["0"]["num_attention_heads"] == 0
    assert entries["1"]["intermediate_size"] == 0
    dense = {"num_attention_heads": 4, "intermediate_size": 24}
    found = {(i, key): {**dense, **entries.get(str(i), {})}[key] for i in range(3) for key in dense}
    expected = {}
    for name, count in plan.counts.items():
        _, layer, axis = name.split(".")
        expected[int(layer), {"heads": "num_attention_heads", "neurons": "intermediate_size"}[axis]] = count
    assert found == expected
    assert all(dense[key] != value for entry in entries.values() for key, value in entry.items())
