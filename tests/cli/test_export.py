"""`pyprune export` as a user meets it."""

import json
from pathlib import Path

import pytest
import torch
from refusals import refuse

from pyprune.testing.checkpoints import tiny_checkpoint


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("models") / "llama", "llama", "AutoModelForCausalLM")


def test_a_pruned_checkpoint_becomes_block_configs(run, llama):
    data = ("--data", llama.parent / "passages.txt", "--samples", "8", "--recipe", "flap")
    assert run("prune", llama, *data, "--flops", "50%", "--out", "small", "--quiet")[0] == 0
    code, out, _ = run("export", "small", "--block-configs", "served")
    assert code == 0
    assert "equal" in out
    assert "padded with zeros" in out
    files = {path.name for path in Path("served").iterdir()}
    assert {"config.json", "configuration_decilm.py", "model.safetensors", "tokenizer.json"} <= files
    refuse(run, "export", "small", "--block-configs", "served", says="is not empty")
    assert run("export", "small", "--block-configs", "served", "--overwrite", "--quiet")[1] == ""


def test_a_program(run, llama):
    code, out, _ = run("export", llama, "--torch-export", "model.pt2", "--dtype", "float64", "--json")
    assert code == 0
    report = json.loads(out)
    assert report["format"] == "torch_export"
    assert all(check["difference"] <= check["allowed"] for check in report["checks"])
    ids = torch.arange(4, 12)[None]
    found = torch.export.load("model.pt2").module()(input_ids=ids, attention_mask=torch.ones_like(ids))
    assert found["logits"].dtype == torch.float64


def test_refusals(run, llama, monkeypatch):
    refuse(run, "export", llama, says="give one of --onnx")
    refuse(run, "export", llama, "--onnx", "a.onnx", "--torch-export", "a.pt2", says="give one of --onnx")
    refuse(run, "export", llama, "--torch-export", "model.bin", says="files called *.pt2")
    refuse(run, "export", llama, "--onnx", "nowhere/a.onnx", says="does not exist or cannot be written to")
    refuse(run, "export", "no-such-model", "--torch-export", "a.pt2", says="no such directory")
    monkeypatch.setattr("pyprune.formats.onnx.find_spec", lambda name: None)
    refuse(run, "export", llama, "--onnx", "a.onnx", says="pip install onnx onnxruntime onnxscript")
