"""ONNX: the traced graph in the format that onnxruntime and others run."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyprune.core.errors import InputError
from pyprune.formats.exported import Exported, check_file, checked, complete_file
from pyprune.formats.graph import Graph, trace, trials

_PACKAGES = ("onnx", "onnxruntime", "onnxscript")


def check_onnx_file(out: Path, overwrite: bool) -> None:
    """InputError unless the file `out` can be written and the packages that do it are there."""
    if missing := [name for name in _PACKAGES if find_spec(name) is None]:
        raise InputError(f"ONNX needs {', '.join(missing)}: pip install {' '.join(_PACKAGES)}")
    check_file(out, overwrite)


def write_onnx(model: nn.Module, tokenizer: Any, out: Path) -> Exported:
    """Write `model` to `out` and run it by onnxruntime, on the CPU, at other batches and lengths than were traced.

    Weights beyond 2 GB go to a second file beside it. InputError when the model cannot be converted
    or run, MismatchError when onnxruntime gives other outputs; then nothing is written.
    """
    if model.dtype == torch.bfloat16:
        raise InputError("onnxruntime cannot run bfloat16 on CPUs: export in another dtype (dtype=float32)")
    with complete_file(out) as file:
        _convert(trace(model), file)
        checks = tuple(checked(name, expected, _run(file, inputs)) for name, inputs, expected in trials(model))
    return Exported(out, checks)


def _convert(graph: Graph, file: Path) -> None:
    with _hushed():
        try:
            program = torch.onnx.export(
                graph.program, dynamo=True, dynamic_shapes=graph.dims, output_names=list(graph.outputs), verbose=False
            )
        except torch.onnx.OnnxExporterError as error:
            raise InputError(f"the model cannot be converted to ONNX: {_first_line(error)}") from error
        program.save(file)


def _run(file: Path, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        # The converter leaves out inputs that no output depends on.
        given = {node.name: inputs[node.name].cpu().numpy() for node in session.get_inputs()}
        found = session.run(None, given)
    except Exception as error:  # onnxruntime's have no common base
        raise InputError(f"onnxruntime cannot run the exported model: {_first_line(error)}") from error
    return {node.name: torch.from_numpy(array) for node, array in zip(session.get_outputs(), found, strict=True)}


@contextmanager
def _hushed() -> Iterator[None]:
    """Without the converter's notes on what else could be installed, and on its own deprecated calls."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0]
