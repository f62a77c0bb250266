"""What `verify` notices, and what it must not take for a difference."""

import pytest
import torch
from safetensors.torch import load_file, save_file

import pyprune
from pyprune.core.batches import Samples
from pyprune.core.errors import InputError
from pyprune.core.storage import read_tensors, write_tensors
from pyprune.models.adapter import adapter_for, asked_axes
from pyprune.testing.models import heads, random_plan, tiny_model
from pyprune.testing.zoo import ZOO
from pyprune.verification import REFERENCE_FILE

# Checkpoints of each kind of input.
REPLAYED = ("gpt2", "t5", "whisper", "pix2struct", "mask2former", "clip", "vilt", "siglip-vision", "mixtral")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("variant", ["bert", "llama"])
def test_changed_weights_are_noticed_in_every_dtype(variant, dtype, tmp_path):
    model = tiny_model(variant, dtype=dtype)
    plan = random_plan(adapter_for(model).anatomy(model))
    folder = pyprune.save(pyprune.apply(model, plan), tmp_path / "small", plan=plan)
    assert all(check.equal for check in pyprune.verify_checkpoint(folder))
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith(("2.self_attn.o_proj.weight", "2.output.dense.weight")))
    weights[name] = weights[name].flip(0).contiguous()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert not all(check.equal for check in pyprune.verify_checkpoint(folder))


@pytest.mark.parametrize("variant", ["bert", "llama"])
def test_the_reloaded_model_attends_like_the_given_one(variant):
    assert all(check.equal for check in pyprune.verify_model(tiny_model(variant, attention="eager")))


@pytest.mark.parametrize("variant", ZOO)
def test_every_family_is_verified(variant, tmp_path):
    """Pixels, sound and patches, patches in random order, members with kernels of their own; every axis at once."""
    model = tiny_model(variant, heads(variant)[0])
    checks = pyprune.verify_model(model)
    assert [str(check) for check in checks if not check.equal] == []
    beyond = {axis for axis, refusal in asked_axes(model, together=True).items() if not refusal}
    axes = {group.axis for group in adapter_for(model).anatomy(model).groups} | beyond
    assert [set(check.axes) for check in checks] == [axes, axes]
    if variant not in REPLAYED:
        return
    plan = random_plan(adapter_for(model).anatomy(model))
    folder = pyprune.save(pyprune.apply(model, plan), tmp_path / "small", plan=plan)
    assert [str(check) for check in pyprune.verify_checkpoint(folder) if not check.equal] == []


def test_the_random_plan_empties_blocks_of_layers_that_stay():
    anatomy = adapter_for(model := tiny_model("llama")).anatomy(model, ["layers", "hidden"])
    for seed in range(20):
        plan = pyprune.verification.random_plan(anatomy, 0.5, seed)
        lost = anatomy.lost_layers(plan.kept)
        assert lost
        assert plan.counts["hidden"] < 32
        emptied = {block.units.axis for block in anatomy.blocks if not plan.counts[block.units.name]}
        stay = {block.units.axis for block in anatomy.blocks if block.layer_path not in lost}
        assert emptied >= stay == {"kv_groups", "neurons"}


@pytest.mark.parametrize(("variant", "head"), [("bert", "AutoModel"), ("dinov2", "AutoBackbone")])
def test_outputs_without_names_and_features_in_tuples(variant, head, tmp_path):
    model = tiny_model(variant, head, torch.bfloat16)
    model.config.return_dict = False
    assert all(check.equal for check in pyprune.verify_model(model))
    folder = pyprune.save(model, tmp_path / "model")
    assert all(check.equal for check in pyprune.verify_checkpoint(folder))


@pytest.mark.parametrize("pad", [-1, 90])
def test_any_padding_token_of_the_config_will_do(pad, tmp_path):
    # -1 stands for none in old configs; 90 lies beyond the 40 positions, as it does in most large vocabularies.
    model = tiny_model("llama", "AutoModelForCausalLM", pad_token_id=pad)
    data = Samples([{"input_ids": torch.arange(3, 7 + s)} for s in range(4)], None, {})
    pyprune.prune(model, {"flops": 0.6}, data, out=tmp_path / "small")
    assert all(check.equal for check in pyprune.verify_checkpoint(tmp_path / "small"))


def test_a_reference_without_outputs_proves_nothing(tmp_path):
    folder = pyprune.save(tiny_model("bert"), tmp_path / "model")
    tensors, meta = read_tensors(folder / REFERENCE_FILE)
    write_tensors(folder / REFERENCE_FILE, {k: v for k, v in tensors.items() if k.startswith("inputs/")}, meta)
    with pytest.raises(InputError, match=r"pyprune_reference.st: holds no outputs to compare with"):
        pyprune.verify_checkpoint(folder)
