"""Models made of other models: each member has its own widths, and loads alone from the checkpoint of the whole."""

import copy
import json
import pickle

import pytest
import torch
import transformers

from pyprune.capture.masking import masked
from pyprune.core.plan import Plan
from pyprune.models.adapter import adapter_for
from pyprune.models.inputs import example_inputs
from pyprune.slicing.slice import slice_
from pyprune.testing.models import random_plan, tiny_model

# A model, one of its members, and the class of the member.
MEMBERS = [
    ("clip", "text_model", "CLIPTextModel"),
    ("clip", "vision_model", "CLIPVisionModel"),
    ("siglip", "text_model", "SiglipTextModel"),
    ("siglip", "vision_model", "SiglipVisionModel"),
]


def pruned(variant, head="AutoModel"):
    model = tiny_model(variant, head)
    adapter = adapter_for(model)
    return slice_(model, adapter, random_plan(adapter.anatomy(model)))


@torch.no_grad()
@pytest.mark.parametrize(("variant", "path", "member_class"), MEMBERS)
def test_a_member_loads_alone(variant, path, member_class, tmp_path):
    model = pruned(variant)
    model.save_pretrained(tmp_path)
    alone, info = getattr(transformers, member_class).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    member = model.get_submodule(path)
    inputs = example_inputs(member)
    assert torch.equal(alone(**inputs).last_hidden_state, member(**inputs).last_hidden_state)
    assert sizes(alone) == sizes(member)


@pytest.mark.parametrize("variant", sorted({variant for variant, *_ in MEMBERS}))
def test_the_members_of_one_model_differ_in_width(variant, tmp_path):
    model = pruned(variant)
    model.save_pretrained(tmp_path)
    reloaded = transformers.AutoModel.from_pretrained(tmp_path)
    assert sizes(reloaded) == sizes(model)
    dense = sizes(tiny_model(variant))
    assert any(sizes(model)[name] < dense[name] for name in dense if name.startswith("text"))
    assert any(sizes(model)[name] < dense[name] for name in dense if name.startswith("vision"))


def sizes(model):
    return {group.name: group.size for group in adapter_for(model).anatomy(model).groups}


def test_an_image_encoder_comes_before_the_text_that_reads_it():
    model = tiny_model("git")
    blocks = adapter_for(model).anatomy(model).blocks
    stacks = [block.units.name.partition("layers.")[0] for block in blocks]
    assert stacks == ["image_encoder."] * 6 + [""] * 4
    assert [block.exit is None for block in blocks] == [False] * 5 + [True] + [False] * 4


@torch.no_grad()
def test_members_that_are_built_from_one_config_have_their_own_widths(tmp_path):
    model = tiny_model("blip", "BlipForQuestionAnswering", torch.float64)
    adapter = adapter_for(model)
    anatomy = adapter.anatomy(model)
    plan = random_plan(anatomy)
    plan.kept |= {"text_encoder.layers.0.cross_heads": torch.arange(0), "text_decoder.layers.1.heads": torch.arange(1)}
    inputs = example_inputs(model)
    inputs["labels"] = inputs["decoder_input_ids"]  # without them no output depends on the text
    dense = model(**inputs).loss
    with masked(model, anatomy, plan):
        expected = model(**inputs).loss
    assert abs(dense - expected) > 1e-3
    sliced = slice_(copy.deepcopy(model), adapter, plan)
    assert abs(sliced(**inputs).loss - expected) < 1e-10

    sliced.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert (
        stored["pruned_groups"].items()
        >= {"text_encoder.layers.0.cross_heads": 0, "text_decoder.layers.1.heads": 1}.items()
    )
    assert "pruned_groups" not in stored["text_config"]
    assert stored["vision_config"]["per_layer_config"]
    reloaded = type(sliced).from_pretrained(tmp_path, dtype="auto")
    assert sizes(reloaded) == plan.counts
    assert torch.equal(copy.deepcopy(reloaded)(**inputs).loss, sliced(**inputs).loss)

    again = random_plan(adapter.anatomy(sliced), seed=1)
    twice = slice_(sliced, adapter, again)
    twice.save_pretrained(tmp_path)
    assert sizes(type(twice).from_pretrained(tmp_path)) == again.counts


def test_a_head_count_of_blip_survives_copies_and_export():
    model = tiny_model("blip-vision", "BlipVisionModel")
    adapter = adapter_for(model)
    plan = Plan.keep_all(adapter.anatomy(model))
    plan.kept["layers.1.heads"] = torch.tensor([0, 2])
    layer = slice_(model, adapter, plan).encoder.layers[1].self_attn
    assert layer.num_heads == 2
    assert 24 // layer.num_heads == layer.head_dim == 8
    for count in (copy.deepcopy(layer.num_heads), pickle.loads(pickle.dumps(layer.num_heads))):
        assert (int(count), 24 // count) == (int(layer.num_heads), 8)
    states = torch.randn(2, 5, 24)
    exported = torch.export.export(layer, (states,)).module()
    assert torch.equal(exported(states)[0], layer(states)[0])


def test_images_and_texts_of_one_sequence_are_counted_together():
    model = tiny_model("vilt")
    groups = adapter_for(model).anatomy(model).groups
    tokens = 5 + 9 + 1
    assert groups[1].cost.flops(5) == 2 * tokens * groups[1].cost.params
    assert groups[0].cost.flops(5) == 2 * tokens * (groups[0].cost.params + tokens * groups[0].cost.attention)


def test_an_image_encoder_whose_layers_are_read_by_number_keeps_them():
    """LLaVA reads the last layer but one; its text decoder loses query heads and layers."""
    text = {"vocab_size": 100, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "pad_token_id": 1}
    text |= {"num_attention_heads": 8, "num_key_value_heads": 2, "model_type": "llama"}
    vision = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision |= {"image_size": 12, "patch_size": 4, "model_type": "clip_vision_model"}
    config = transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_index=99)
    torch.manual_seed(0)
    model = transformers.LlavaForConditionalGeneration(config).double().eval()
    adapter, axes = adapter_for(model), ["query_heads", "layers"]
    anatomy = adapter.anatomy(model, axes)
    assert [group.units.name for group in anatomy.layer_groups] == ["model.language_model.layers"]
    plan = random_plan(anatomy, emptied=False)
    plan.kept["model.language_model.layers"] = torch.tensor([0, 2])
    pixels = torch.randn(1, 3, 12, 12, dtype=torch.float64)
    inputs = {"input_ids": torch.tensor([[99] * 9 + [5, 6, 7]]), "pixel_values": pixels}
    with torch.no_grad(), masked(model, anatomy, plan):
        expected = model(**inputs).logits
    torch.testing.assert_close(slice_(model, adapter, plan)(**inputs).logits, expected, rtol=0, atol=1e-12)
