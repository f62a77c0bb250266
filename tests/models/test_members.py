"""Models made of other models: each member has its own widths, and loads alone from the checkpoint of the whole."""

import pytest
import torch
import transformers

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
