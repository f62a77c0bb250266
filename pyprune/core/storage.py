"""Tensors and JSON on disk: safetensors only, written beside the target and renamed into place."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from pyprune.core.errors import InputError


@contextmanager
def _replaced(path: str | Path) -> Iterator[Path]:
    """A file to write beside `path`, which it replaces afterwards; nothing of it stays when writing fails."""
    path = Path(path)
    partial = path.with_name(path.name + ".tmp")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file so that a crash leaves the old file or the new one, never half of either."""
    with _replaced(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: str | Path, data: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(data, indent=2) + "\n")


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a JSON object; InputError names the file when it is missing or broken."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: {(error.strerror or str(error)).lower()}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a JSON file ({error})") from None
    if not isinstance(data, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(data).__name__}")
    return data


def write_tensors(path: str | Path, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any]) -> None:
    """Write tensors with a JSON-encodable `meta` in the safetensors header."""
    header = {"pyprune": json.dumps(meta)}
    with _replaced(path) as partial:
        save_file({name: t.contiguous().cpu() for name, t in tensors.items()}, partial, header)


def read_tensors(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read what `write_tensors` wrote; InputError names the file when it is missing, truncated or of another origin."""
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file")
    try:
        with safe_open(path, "pt") as file:
            meta = file.metadata() or {}
        tensors = load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path}: not a complete safetensors file ({error})") from None
    if "pyprune" not in meta:
        raise InputError(f"{path}: a safetensors file, but not one that pyprune wrote")
    return tensors, json.loads(meta["pyprune"])
