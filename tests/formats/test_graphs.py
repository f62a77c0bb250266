"""ONNX and torch.export of pruned models: any batch and length, as close to the truth as torch itself."""

import copy
import importlib.util

import numpy as np
import pytest
import torch

import pyprune
from pyprune.core.errors import InputError, MismatchError
from pyprune.models.adapter import adapter_for
from pyprune.models.inputs import example_inputs
from pyprune.slicing.slice import slice_
from pyprune.testing import numerics
from pyprune.testing.models import random_plan, tiny_model
from pyprune.testing.zoo import ZOO

TWO_LAYERS = {"num_hidden_layers": 2}
MODELS = {
    "bert": ("AutoModelForTokenClassification", TWO_LAYERS),
    "llama": ("AutoModelForCausalLM", TWO_LAYERS),
    "gpt2": ("AutoModelForCausalLM", {"n_layer": 2}),
    "vit": ("AutoModelForImageClassification", TWO_LAYERS),
    "bart": ("AutoModel", {"encoder_layers": 2, "decoder_layers": 1}),
    "t5": ("AutoModelForSeq2SeqLM", {"num_layers": 2, "num_decoder_layers": 1}),
    "mixtral": ("AutoModel", TWO_LAYERS),  # experts of widths that go through a loop
}
SUFFIX = {"onnx": "onnx", "torch_export": "pt2"}


def pruned(variant):
    """A model in which one attention, one cross-attention and one feed-forward block are empty."""
    head, smaller = MODELS[variant]
    model = tiny_model(variant, head, **smaller)
    adapter = adapter_for(model)
    anatomy = adapter.anatomy(model)
    plan = random_plan(anatomy, seed=5)
    plan.kept |= {g.name: torch.arange(0) for g in anatomy.groups if "cross" in g.name}
    assert sum(len(kept) == 0 for kept in plan.kept.values()) >= 2
    return slice_(model, adapter, plan)


@torch.no_grad()
def outputs(model, inputs):
    found = model(**inputs)
    return {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}


def check(model, inputs, found):
    """The exported model's `found` outputs err no more than torch does in the same dtype."""
    expected = outputs(model, inputs)
    double = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
    truth = outputs(copy.deepcopy(model).double(), double)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        numerics.budget(tensor, truth[name], expected[name], k=4)


def unlike(model):
    """Inputs of another batch than any that export itself tries, and lengths that differ between both sides."""
    inputs = example_inputs(model, 4, 9)
    longer = example_inputs(model, 4, 21)
    return inputs | {name: longer[name] for name in inputs if name.startswith("decoder_")}


@pytest.mark.parametrize("variant", MODELS)
def test_onnx_of_any_batch_and_length(variant, tmp_path):
    import onnxruntime

    model = pruned(variant)
    done = pyprune.export(model, tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert len(done.checks) == 2
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    inputs = unlike(model)
    shapes = {node.name: node.shape for node in session.get_inputs()}
    assert {shape[0] for shape in shapes.values()} == {"batch"}
    for name in shapes.keys() - {"pixel_values"}:
        assert shapes[name] == ["batch", "decoder_length" if name.startswith("decoder") else "length"]
    found = session.run(None, {name: inputs[name].numpy() for name in shapes})
    names = [node.name for node in session.get_outputs()]
    check(model, inputs, {name: torch.from_numpy(array) for name, array in zip(names, found, strict=True)})


@pytest.mark.parametrize("variant", ["vit", "t5"])
def test_a_program_of_any_batch_and_length(variant, tmp_path):
    model = pruned(variant)
    pyprune.export(model, tmp_path / "model.pt2", "torch_export")
    inputs = unlike(model)
    with torch.no_grad():
        check(model, inputs, torch.export.load(tmp_path / "model.pt2").module()(**inputs))


@pytest.mark.parametrize("format", SUFFIX)
def test_an_export_that_differs_is_no_export(format, tmp_path):
    """Noise stands for an operator that the other side computes in another way."""
    model = tiny_model("vit", **TWO_LAYERS)
    model.layers[0].register_forward_hook(lambda *args: args[-1] + torch.rand_like(args[-1]))
    out = tmp_path / f"model.{SUFFIX[format]}"
    out.write_text("of yesterday")
    with pytest.raises(MismatchError, match=r"batch 1: the exported model differs by .* \(allowed "):
        pyprune.export(model, out, format, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    assert out.read_text() == "of yesterday"


def test_code_that_cannot_be_traced(tmp_path):
    model = tiny_model("vit", **TWO_LAYERS)
    model.layers[0].register_forward_hook(lambda *args: args[-1] if args[-1].sum() > 0 else -args[-1])
    with pytest.raises(InputError, match="ViTModel cannot be exported: ") as caught:
        pyprune.export(model, tmp_path / "model.pt2", "torch_export")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_program_that_torch_cannot_save(tmp_path):
    """A traced mask function of the family's own, which torch.export.save does not know how to write."""
    model = tiny_model("gemma3-bidirectional", num_hidden_layers=1)
    with pytest.raises(InputError, match="the traced model cannot be written to a file: ") as caught:
        pyprune.export(model, tmp_path / "model.pt2", "torch_export")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_program_that_runs_at_the_traced_batch_alone(tmp_path):
    vision = ZOO["git"].config["vision_config"] | {"num_hidden_layers": 1}
    model = tiny_model("git", "AutoModelForCausalLM", num_hidden_layers=1, vision_config=vision)
    with pytest.raises(InputError, match="torch cannot run the exported model: Guard failed: "):
        pyprune.export(model, tmp_path / "model.pt2", "torch_export")
    assert not list(tmp_path.iterdir())


def test_a_fixed_length_is_refused(tmp_path):
    model = tiny_model("bert", **TWO_LAYERS)
    model.register_forward_hook(lambda *args: args[-1].__setitem__("pooler_output", args[-1][0] + torch.ones(12, 1)))
    with pytest.raises(InputError, match="BertModel cannot be exported: "):
        pyprune.export(model, tmp_path / "model.pt2", "torch_export")


def test_refusals(tmp_path, monkeypatch):
    model = tiny_model("bert", **TWO_LAYERS)
    (tmp_path / "taken.onnx").touch()
    with pytest.raises(InputError, match="exists already"):
        pyprune.export(model, tmp_path / "taken.onnx")
    with pytest.raises(InputError, match="does not exist or cannot be written to"):
        pyprune.export(model, tmp_path / "nowhere" / "model.onnx")
    with pytest.raises(InputError, match="is a directory"):
        pyprune.export(model, tmp_path)
    with pytest.raises(InputError, match=r"files called \*\.pt2"):
        pyprune.export(model, tmp_path / "model.pth", "torch_export")
    with pytest.raises(InputError, match="unknown format 'gguf'; known: block_configs, onnx, torch_export"):
        pyprune.export(model, tmp_path / "model.gguf", "gguf")
    with pytest.raises(InputError, match="device and dtype are for models given by name"):
        pyprune.export(model, tmp_path / "model.onnx", device="cuda")
    with pytest.raises(InputError, match="bfloat16"):
        pyprune.export(model.bfloat16(), tmp_path / "model.onnx")
    here = importlib.util.find_spec
    monkeypatch.setattr("pyprune.formats.onnx.find_spec", lambda name: None if name == "onnxscript" else here(name))
    with pytest.raises(InputError, match="ONNX needs onnxscript: pip install onnx onnxruntime onnxscript"):
        pyprune.export(model, tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["taken.onnx"]


def test_a_dense_model_in_half_precision(tmp_path):
    import onnxruntime

    model = tiny_model("vit", dtype=torch.float16, **TWO_LAYERS)
    (first, _) = pyprune.export(model, tmp_path / "model.onnx").checks
    assert 0 < first.difference < 0.05
    assert model.training is False
    assert next(model.parameters()).requires_grad
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (image,) = session.get_inputs()
    assert image.type == "tensor(float16)"
    assert session.run(None, {image.name: np.zeros((5, 3, 12, 12), np.float16)})[0].shape[0] == 5


def test_large_weights_lie_beside(tmp_path, monkeypatch):
    """From 2 GB on; here from the first byte on."""
    import onnxruntime

    monkeypatch.setattr("torch.onnx._internal.exporter._onnx_program._LARGE_MODEL_THRESHOLD", 0)
    pyprune.export(tiny_model("vit", **TWO_LAYERS), tmp_path / "model.onnx")
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx", "model.onnx.data"}
    onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
