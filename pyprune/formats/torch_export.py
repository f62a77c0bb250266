"""torch.export: the traced program as a `.pt2` file, which torch alone loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._export.serde.serialize import SerializeError

from pyprune.core.errors import InputError
from pyprune.formats.exported import Exported, check_file, checked, complete_file
from pyprune.formats.graph import trace, trials


def check_program_file(out: Path, overwrite: bool) -> None:
    """InputError unless the file `out` can be written; torch loads no other names than `*.pt2`."""
    if out.suffix != ".pt2":
        raise InputError(f"out={str(out)!r}: torch.export programs are files called *.pt2")
    check_file(out, overwrite)


def write_torch_export(model: nn.Module, tokenizer: Any, out: Path) -> Exported:
    """Write `model` to `out`, load it again and run it at other batches and lengths.

    `torch.export.load(out).module()(**inputs)` gives a dict of tensors. InputError when the model cannot be traced, or
    its program not written, MismatchError when the file gives other outputs; then nothing is written.
    """
    with complete_file(out) as file:
        program = trace(model).program
        try:
            torch.export.save(program, file)
            loaded = torch.export.load(file).module()
        except SerializeError as error:
            reason = str(error.__cause__ or error).strip().split("\n")[0]
            raise InputError(f"the traced model cannot be written to a file: {reason}") from error
        checks = tuple(checked(name, expected, _run(loaded, inputs)) for name, inputs, expected in trials(model))
    return Exported(out, checks)


@torch.no_grad()
def _run(program: nn.Module, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    try:
        return program(**inputs)
    except (AssertionError, RuntimeError) as error:  # of guards, and of operators that got other shapes than traced
        raise InputError(f"torch cannot run the exported model: {str(error).strip().splitlines()[0]}") from error
