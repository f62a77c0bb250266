"""Complete checkpoints, written beside their place and renamed into it."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from pyprune.core.errors import InputError

# What sentence-transformers reads besides the model, and the list that names its further modules' folders.
_SENTENCE_MODULES = "modules.json"
# File systems allow 255 bytes, of which names beside the output need a few.
_LONGEST_NAME = 240
_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
_SENTENCE_FILES = (_SENTENCE_MODULES, "config_sentence_transformers.json", "sentence_bert_config.json")


def check_output(out_dir: str | Path, overwrite: bool = False) -> Path:
    """The output directory as a path. Nothing is written.

    Raises InputError when it holds files already (unless `overwrite`), is no directory, or cannot be made.
    """
    out = Path(out_dir)
    if out.name in ("", ".."):
        raise InputError(f"out={str(out)!r} has no name of its own; give the directory's name")
    if len(os.fsencode(out.name)) > _LONGEST_NAME:
        raise InputError(f"out={str(out)!r:.60}...: the directory's name is longer than {_LONGEST_NAME} bytes")
    if out.exists() and not out.is_dir():
        raise InputError(f"out={str(out)!r} is a file; give a directory")
    if out.exists() and any(out.iterdir()) and not overwrite:
        raise InputError(
            f"out={str(out)!r} is not empty: remove it, choose another name, or give --overwrite (overwrite=True)"
        )
    parent = out.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise InputError(f"out={str(out)!r}: {parent} cannot be written to")
    return out


@contextmanager
def complete_directory(out_dir: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """A new directory to fill, which takes the name `out_dir` when the block ends and vanishes when it raises.

    It is a sibling of `out_dir`, so that the rename is atomic: nobody ever sees half a checkpoint. What `overwrite`
    replaces is put aside first and deleted last.
    """
    # A link stays, and what it points to is replaced.
    out = check_output(out_dir, overwrite).resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    mark = uuid.uuid4().hex[:8]
    staging, old = out.with_name(f".{out.name}.{mark}"), out.with_name(f".{out.name}.{mark}.old")
    staging.mkdir()
    try:
        yield staging
        if out.exists():
            os.replace(out, old)
        os.replace(staging, out)
    except BaseException:
        if old.exists() and not out.exists():
            os.replace(old, out)
        shutil.rmtree(staging, ignore_errors=True)
        raise
    if old.exists():
        shutil.rmtree(old)


def write_checkpoint(model: nn.Module, tokenizer: Any, folder: Path, source_dir: str | Path | None = None) -> None:
    """Fill `folder` with model, generation config and tokenizer, so that plain `from_pretrained` loads them.

    With `source_dir`, the folder that the dense model came from, what its processors of images and sound read and the
    files that make it a sentence-transformers model are copied too.
    """
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    if source_dir is not None:
        for name in _PROCESSOR_FILES:
            if (Path(source_dir) / name).is_file():
                shutil.copyfile(Path(source_dir) / name, folder / name)
        _copy_sentence_transformers_files(Path(source_dir), folder)


def _copy_sentence_transformers_files(source: Path, target: Path) -> None:
    if not (source / _SENTENCE_MODULES).is_file():
        return
    for name in _SENTENCE_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    for folder in _module_folders(source):
        shutil.copytree(source / folder, target / folder)


def _module_folders(source: Path) -> list[str]:
    """Folders of the modules behind the transformer (pooling, dense, ...), all inside `source`."""
    modules = json.loads((source / _SENTENCE_MODULES).read_text(encoding="utf-8"))
    folders = [module["path"] for module in modules if module["path"]]
    for folder in folders:
        if not (source / folder).resolve().is_relative_to(source.resolve()):
            raise InputError(f"{source / _SENTENCE_MODULES}: {folder!r} leads out of the checkpoint")
    return [folder for folder in folders if (source / folder).is_dir()]
