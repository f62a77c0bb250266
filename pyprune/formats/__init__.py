"""Formats that a model, pruned or dense, is written in for others to run; every file is checked before it appears."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from pyprune.core.registry import Registry
from pyprune.formats.block_configs import write_block_configs_checked
from pyprune.formats.exported import Exported
from pyprune.formats.onnx import check_onnx_file, write_onnx
from pyprune.formats.torch_export import check_program_file, write_torch_export
from pyprune.models.saving import check_output


class Format(NamedTuple):
    """`check(out, overwrite)` raises InputError for what can be known before the model is; `write(model, tokenizer,
    out)` replaces what is at `out`.
    """

    check: Callable[[Path, bool], Any]
    write: Callable[[nn.Module, Any, Path], Exported]


FORMATS: Registry[Format] = Registry("format")
FORMATS.register("onnx")(Format(check_onnx_file, write_onnx))
FORMATS.register("torch_export")(Format(check_program_file, write_torch_export))
FORMATS.register("block_configs")(Format(check_output, write_block_configs_checked))

__all__ = ["FORMATS", "Exported"]
