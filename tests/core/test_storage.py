"""Files appear whole or not at all."""

import os
import re

import pytest
import torch
from safetensors.torch import save_file

from pyprune.core import storage
from pyprune.core.errors import InputError
from pyprune.core.storage import read_json, read_tensors, write_json, write_tensors
from pyprune.testing import numerics

TENSORS = {"a": torch.arange(6).view(2, 3), "empty": torch.zeros(4, 0), "view": torch.randn(4, 4).T}


def test_tensors_round_trip(tmp_path):
    write_tensors(tmp_path / "x.safetensors", TENSORS, {"seed": 3, "names": ["é"]})
    tensors, meta = read_tensors(tmp_path / "x.safetensors")
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in tensors.items():
        numerics.exact(tensor, TENSORS[name])
    assert meta == {"seed": 3, "names": ["é"]}


def write_text_file(path, text):
    write_json(path, {"text": text})


def write_tensor_file(path, text):
    write_tensors(path, {"x": torch.zeros(3)}, {"text": text})


@pytest.mark.parametrize("write", [write_text_file, write_tensor_file])
def test_a_crash_before_the_rename_leaves_the_old_file(tmp_path, monkeypatch, write):
    path = tmp_path / "file"
    write(path, "old")
    before = path.read_bytes()

    def crash(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError, match="disk full"):
        write(path, "new")
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_crash_halfway_through_writing_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_tensor_file(path, "old")
    before = path.read_bytes()

    def half(tensors, partial, metadata):
        partial.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(storage, "save_file", half)
    with pytest.raises(KeyboardInterrupt):
        write_tensor_file(path, "new")
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_what_json_cannot_say_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    write_text_file(path, "old")
    with pytest.raises(TypeError):
        write_json(path, {"x": torch.zeros(1)})
    assert read_json(path) == {"text": "old"}


def broken(tmp_path, kind):
    path = tmp_path / "x.safetensors"
    if kind == "foreign":
        save_file({"x": torch.zeros(2)}, path)
    elif kind == "truncated":
        write_tensor_file(path, "text")
        path.write_bytes(path.read_bytes()[:-5])
    elif kind == "text":
        path.write_text("not tensors, and longer than a header")
    elif kind == "empty":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "no such file"),
        ("folder", "no such file"),
        ("empty", "not a complete safetensors file"),
        ("text", "not a complete safetensors file"),
        ("truncated", "not a complete safetensors file"),
        ("foreign", "not one that pyprune wrote"),
    ],
)
def test_unusable_files_are_named(tmp_path, kind, message):
    path = broken(tmp_path, kind)
    with pytest.raises(InputError, match=re.escape(f"{path}: ") + f".*{message}"):
        read_tensors(path)


def test_binary_files_are_no_json(tmp_path):
    (tmp_path / "x.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not a JSON file"):
        read_json(tmp_path / "x.json")
