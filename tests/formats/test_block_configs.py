"""The block_configs layout: what is built from its config alone gives the pruned model's logits."""

import json

import pytest
import torch
from safetensors.torch import load_file

import pyprune
from pyprune.core.errors import InputError, MismatchError
from pyprune.core.plan import Plan
from pyprune.models.adapter import adapter_for
from pyprune.models.block_configs import layout, read_block_configs
from pyprune.models.inputs import example_inputs
from pyprune.slicing.check import max_difference
from pyprune.slicing.slice import slice_
from pyprune.testing.models import random_plan, tiny_model

ROUNDING = 1e-10  # float64
SCALED = {
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 20,
    }
}
MODELS = {
    "llama": ("llama", {}),
    "every head its own keys": ("llama-mha", {}),
    "tied, scaled positions, wide heads": ("llama", {"tie_word_embeddings": True, "head_dim": 12, **SCALED}),
    "mistral": ("mistral", {"sliding_window": None}),
    "eight groups": ("llama", {"hidden_size": 64, "num_attention_heads": 16, "num_key_value_heads": 8}),
}


def lm(name, dtype=torch.float64):
    variant, config = MODELS[name]
    return tiny_model(variant, "AutoModelForCausalLM", dtype, **config)


def cut(model, kind):
    adapter = adapter_for(model)
    grouped = model.model.layers[0].self_attn.num_key_value_groups > 1
    axes = ["query_heads"] if kind == "uneven groups" and grouped else []
    anatomy = adapter.anatomy(model, axes)
    if kind == "dense":
        return model
    if kind == "all attention gone":
        plan = Plan.keep_all(anatomy)
        plan.kept |= {g.name: torch.arange(0) for g in anatomy.groups if g.axis != "neurons"}
    else:
        plan = random_plan(anatomy, seed=2, emptied=kind == "emptied")
    return slice_(model, adapter, plan)


def logits(model):
    with torch.no_grad():
        return model(**example_inputs(model, 3, 11), use_cache=False)[0]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", ["dense", "random", "emptied", "all attention gone", "uneven groups"])
def test_rebuilt_from_its_own_config(name, kind, tmp_path):
    dense = logits(lm(name))
    model = cut(lm(name), kind)
    done = pyprune.export(model, tmp_path / "out", "block_configs")
    rebuilt = read_block_configs(tmp_path / "out")
    assert max_difference(logits(model), logits(rebuilt)) < ROUNDING
    assert kind == "dense" or max_difference(dense, logits(rebuilt)) > 1e-3
    assert all(check.equal for check in done.checks)
    blocks = json.loads((tmp_path / "out/config.json").read_text())["block_configs"]
    names = load_file(tmp_path / "out/model.safetensors").keys()
    assert not blocks[0]["attention"]["no_op"]
    for i, (block, layer) in enumerate(zip(blocks, model.model.layers, strict=True)):
        gone = layer.self_attn.k_proj.weight.numel() == 0
        assert block["attention"]["no_op"] == (gone and i > 0)
        assert block["ffn"]["no_op"] == (layer.mlp.down_proj.weight.numel() == 0)
        for part, norm in (("attention", "input_layernorm"), ("ffn", "post_attention_layernorm")):
            assert (f"model.layers.{i}.{norm}.weight" in names) != block[part]["no_op"]
    padded = sum(p.numel() for p in rebuilt.model.layers.parameters() if p.dim() > 1)
    own = sum(p.numel() for p in model.model.layers.parameters() if p.dim() > 1)
    assert f"{padded - own:,} of {padded:,} weights" in done.notes[0]


def test_heads_that_lost_dimensions_are_refused(tmp_path):
    dense = lm("llama")
    adapter = adapter_for(dense)
    anatomy = adapter.anatomy(dense, ["vo_dims"])
    plan = Plan.keep_all(anatomy)
    plan.kept["layers.1.vo_dims"] = torch.arange(3)
    with pytest.raises(InputError, match="knows one size of heads"):
        pyprune.export(slice_(dense, adapter, plan), tmp_path / "out", "block_configs")
    assert not (tmp_path / "out").exists()


def test_the_sizes_of_the_layout_by_hand():
    """Units (key/value heads) have 4 query heads each: 7 of them 28, and 32 is the next to divide 4,096."""
    found = layout([0, 7, 5, 3, 2, 0, 1], 4, [0, 1, 256, 257, 11008, 0, 0], 4096)
    assert found.query_heads == 32
    assert found.kv_heads == (1, 8, 8, 4, 2, 0, 1)
    assert found.neurons == (0, 256, 256, 512, 11008, 0, 0)
    assert layout([6, 4], 1, [0, 0], 96).query_heads == 6
    with pytest.raises(InputError, match="no number of query heads divides the hidden width 10"):
        layout([6, 4], 2, [0, 0], 10)


def test_queries_stay_with_their_keys():
    """12 query heads are 6 pairs, which 12 key/value heads would part."""
    found = layout([6, 5], 2, [0, 0], 24)
    assert (found.query_heads, found.kv_heads) == (12, (6, 6))


@pytest.mark.parametrize("hidden", [32, 576, 2048, 3072, 4096, 5120, 8192])
def test_a_width_survives_its_multiple(hidden):
    """Engines turn ffn_mult into a width by this rounding."""
    for width in range(256, 4 * hidden + 257, 256):
        back = int(2 * (3 * width / (2 * hidden)) * hidden / 3)
        assert -(-back // 256) * 256 == width


def test_what_the_config_says(tmp_path, monkeypatch):
    """Keys as in published checkpoints; transformers reads it by the class that lies beside it."""
    from transformers import AutoConfig

    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    model = cut(lm("llama", torch.bfloat16), "emptied")
    pyprune.export(model, tmp_path / "out", "block_configs")
    written = json.loads((tmp_path / "out/config.json").read_text())
    assert written["architectures"] == ["DeciLMForCausalLM"]
    assert written["model_type"] == "nemotron-nas"
    assert written["torch_dtype"] == "bfloat16"
    attention = {"n_heads_in_group", "no_op", "num_sink_tokens", "replace_with_linear", "sparsify"}
    attention |= {"unshifted_sink", "use_prefill_window_in_sink_attention", "window_length"}
    for block in written["block_configs"]:
        assert block.keys() == {"attention", "ffn"}
        assert block["attention"].keys() == attention
        assert block["ffn"].keys() == {"ffn_mult", "no_op", "replace_with_linear", "sparsify"}
    config = AutoConfig.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert type(config).__name__ == "DeciLMConfig"
    assert [block.ffn.no_op for block in config.block_configs] == [False, True, False]
    assert not hasattr(config.block_configs[0].ffn, "hidden_act")
    assert json.loads(config.to_json_string())["block_configs"] == written["block_configs"]
    assert config.rope_parameters == model.config.rope_parameters


@pytest.mark.parametrize(
    ("variant", "head", "config", "says"),
    [
        ("qwen2", "AutoModelForCausalLM", {}, "Qwen2ForCausalLM cannot be written"),
        ("llama", "AutoModel", {}, "LlamaModel cannot be written"),
        ("llama-biased", "AutoModelForCausalLM", {}, "attention_bias=True"),
        ("llama", "AutoModelForCausalLM", {"mlp_bias": True}, "mlp_bias=True"),
        ("llama", "AutoModelForCausalLM", {"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ("mistral", "AutoModelForCausalLM", {}, "sliding_window=5"),
    ],
)
def test_other_layers_are_refused(variant, head, config, says, tmp_path):
    with pytest.raises(InputError, match=says):
        pyprune.export(tiny_model(variant, head, **config), tmp_path / "out", "block_configs")
    assert not list(tmp_path.iterdir())


def test_a_directory_with_another_model_is_not_written(tmp_path, monkeypatch):
    """Padding in the wrong corner stands for a mistake of this layout's writer."""
    monkeypatch.setattr(
        "pyprune.models.block_configs._padded",
        lambda tensor, shape: (
            torch.nn.functional.pad(tensor.flatten(), (0, torch.Size(shape).numel() - tensor.numel()))
            .roll(1)
            .view(shape)
        ),
    )
    with pytest.raises(MismatchError, match="the exported model differs"):
        pyprune.export(lm("llama"), tmp_path / "out", "block_configs")
    assert not list(tmp_path.iterdir())
