"""Checkpoints and models that cannot be used: one clear line, before any weight is touched."""

import json

import pytest
import torch
import transformers
from fresh import fresh, refusals

import pyprune
from pyprune.core.errors import InputError, MismatchError, PyPruneError
from pyprune.core.plan import Plan
from pyprune.models.adapter import adapter_for
from pyprune.models.loading import load
from pyprune.testing.models import heads, random_plan, tiny_model
from pyprune.testing.support import cases

NUMBERED = "per_layer_config must hold attributes by layer number"
EDITS = [
    ("llama", "per_layer_config", {"0": {"num_key_value_heads": -1}}, "layers.0.kv_groups has 2 units in the model"),
    (
        "llama",
        "per_layer_config",
        {"1": {"num_key_value_heads": 9}},
        "layers.1.kv_groups has 2 units in the model, not 9",
    ),
    ("llama", "per_layer_config", {"1": {"num_key_value_heads": True}}, "num_key_value_heads"),
    ("llama", "per_layer_config", {"1": {"num_key_value_heads": "one"}}, "'num_key_value_heads' with value 'one'"),
    ("llama", "per_layer_config", {"3": {"intermediate_size": 3}}, r"in the range \[0, 3\); got \[3\]"),
    ("llama", "per_layer_config", {"-1": {"intermediate_size": 3}}, r"in the range \[0, 3\); got \[-1\]"),
    ("llama", "per_layer_config", {"1": {"wings": 3}}, "wings"),
    ("llama", "per_layer_config", {"1": {"hidden_size": 16}}, "'hidden_size' is a per-layer attribute"),
    ("llama", "per_layer_config", {"one": {"intermediate_size": 3}}, NUMBERED),
    ("llama", "per_layer_config", {"1": 3}, NUMBERED),
    ("llama", "per_layer_config", [1, 2], NUMBERED),
    ("bert", "pruned_groups", {"layers.0.heads": 1}, "layers.0.heads has its size in per_layer_config, as num_attent"),
    ("t5", "pruned_groups", {"encoder.layers.0.heads": -1}, "encoder.layers.0.heads has 4 units in the model, not -1"),
    ("t5", "pruned_groups", {"encoder.layers.0.heads": 5}, "encoder.layers.0.heads has 4 units in the model, not 5"),
    (
        "t5",
        "pruned_groups",
        {"encoder.layers.0.heads": "one"},
        "encoder.layers.0.heads has 4 units in the model, not one",
    ),
    (
        "t5",
        "pruned_groups",
        {"encoder.layers.0.heads": 1.5},
        "encoder.layers.0.heads has 4 units in the model, not 1.5",
    ),
    ("t5", "pruned_groups", {"encoder.layers.7.heads": 1}, "the model has no group 'encoder.layers.7.heads'"),
    ("t5", "pruned_groups", {"encoder.layers.0.wings": 1}, "the model has no group 'encoder.layers.0.wings'"),
    ("t5", "pruned_groups", ["encoder"], "expected sizes by the names of groups, found"),
    ("t5", "pruned_groups", "many", "expected sizes by the names of groups, found 'many'"),
    ("clip", "text_config", {"per_layer_config": {"0": {"intermediate_size": -2}}}, "layers.0.neurons has 24 units"),
    ("clip", "text_config", {"per_layer_config": {"first": {"intermediate_size": 2}}}, NUMBERED),
    ("t5", "per_layer_config", {"0": {"d_ff": 3}}, "per_layer_config: t5 has no d_ff that differs between layers"),
    (
        "clip",
        "vision_config",
        {"pruned_groups": {"layers.0.heads": 77}},
        "layers.0.heads has 3 units in the model, not 77",
    ),
]


def pruned(variant):
    model = tiny_model(variant, heads(variant)[0])
    return pyprune.apply(model, random_plan(adapter_for(model).anatomy(model), emptied=False))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("edited")
    for variant in {variant for variant, *_ in EDITS}:
        pruned(variant).save_pretrained(folder / variant)
    return folder


def edited(folder, **entries):
    """The config of a checkpoint with further entries; those of a mapping are added to what it holds."""
    config = json.loads((folder / "config.json").read_text())
    for key, value in entries.items():
        old = config.get(key) or {}
        config[key] = {**old, **value} if isinstance(value, dict) else value
    return config


@pytest.mark.parametrize(("variant", "key", "value", "says"), EDITS)
def test_an_impossible_width_is_told(variant, key, value, says, checkpoints, tmp_path):
    folder = checkpoints / variant
    config = edited(folder, **{key: value})
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(PyPruneError, match=says) as told:
        load(tmp_path)
    assert "\n" not in str(told.value)
    with pytest.raises(Exception, match=r"."):  # transformers' own, where it looks first
        transformers.AutoModel.from_pretrained(tmp_path)


def test_a_possible_width_that_the_weights_do_not_have(tmp_path):
    model = pruned("llama")
    model.save_pretrained(tmp_path)
    size = adapter_for(model).anatomy(model).groups[-1].size
    config = edited(tmp_path, per_layer_config={"2": {"intermediate_size": size - 1}})
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=rf"is \[\d+, {size}\] in the weight file, \[\d+, {size - 1}\] by config.json"):
        load(tmp_path)
    with pytest.raises(RuntimeError):
        transformers.AutoModel.from_pretrained(tmp_path)


def test_a_pruned_checkpoint_is_never_loaded_wrong_without_pyprune(tmp_path):
    """By transformers' own errors, for every model type and axis alone, and for emptied blocks.

    Not for layers and vocabulary: what lost nothing else needs no pyprune. Nor for tokens of images: what lost nothing
    else holds the dense model's weights, and loads as the dense model.
    """
    needless = ("layers", "vocab", "tokens")
    tried = [case for case, refusal in cases().items() if not refusal and case.axis not in needless]
    first = {case.row: case for case in reversed(tried)}.values()
    models = [case.pruned() for case in first]
    for variant in ("t5", "bert", "mask2former"):
        dense = tiny_model(variant, heads(variant)[0])
        plan = Plan.keep_all(anatomy := adapter_for(dense).anatomy(dense))
        plan.kept |= {anatomy.groups[1].name: torch.arange(anatomy.groups[1].least)}
        models.append(pyprune.apply(dense, plan))
    folders = [str(tmp_path / str(number)) for number in range(len(models))]
    for model, folder in zip(models, folders, strict=True):
        model.save_pretrained(folder)
    found = fresh(refusals, folders)
    assert len(found) == len(folders)
    for name, says in found:
        assert name == "AmbiguousGlobalPerLayerAttributeError" or "ignore_mismatched_sizes" in says, (name, says)


@pytest.mark.parametrize(
    ("variant", "head"), [("qwen2", "AutoModelForCausalLM"), ("bert", "AutoModelForMaskedLM"), ("t5", "AutoModel")]
)
def test_tied_weights_that_were_torn_apart(variant, head, tmp_path):
    model = tiny_model(variant, head)
    anatomy = adapter_for(model).anatomy(model)
    plan = random_plan(anatomy)
    torn = model.get_output_embeddings() or model.decoder.embed_tokens
    torn.weight = torch.nn.Parameter(torn.weight.detach().clone() + 1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for use in (
        lambda: pyprune.apply(model, plan, inplace=True),
        lambda: pyprune.verify_model(model),
        lambda: pyprune.prune(model, plan=plan, out=tmp_path / "small"),
        lambda: pyprune.save(model, tmp_path / "small"),
    ):
        with pytest.raises(InputError, match=r"are tied by the model's config, and are two tensors: call model.tie_w"):
            use()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert list(tmp_path.iterdir()) == []
    model.tie_weights()
    assert pyprune.apply(model, plan) is not model


def test_weights_that_are_not_tied_any_more_by_the_config_may_differ():
    model = tiny_model("qwen2", "AutoModelForCausalLM")
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone() + 1)
    model.config.tie_word_embeddings = False
    assert all(check.equal for check in pyprune.verify_model(model))


def test_remote_code_is_refused(tmp_path):
    model = tiny_model("llama")
    model.save_pretrained(tmp_path)
    config = edited(tmp_path, auto_map={"AutoModel": "modeling_mine.MyModel"}, architectures=["MyModel"])
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"'MyModel' is remote code \(auto_map in config.json\), which is not run"):
        load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["LlamaModel"]}))
    assert type(load(tmp_path)[0]) is transformers.LlamaModel
    remote = type("MyModel", (type(model),), {"__module__": "transformers_modules.mine.modeling_mine"})
    model.__class__ = remote
    with pytest.raises(InputError, match="MyModel is remote code, whose layers pyprune does not know"):
        pyprune.verify_model(model)


def test_a_plan_of_another_model_leaves_it_alone():
    model = tiny_model("t5")
    other = tiny_model("t5", num_layers=2)
    plan = random_plan(adapter_for(other).anatomy(other))
    before = model.config.to_dict()
    with pytest.raises(MismatchError, match="the plan was made for another model"):
        pyprune.apply(model, plan, inplace=True)
    assert model.config.to_dict() == before
