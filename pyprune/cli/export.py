"""`pyprune export`: a model as ONNX, as a torch.export program, or in a layout that serving engines read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pyprune.cli import options as opt


def export(
    model: opt.Model,
    onnx: Annotated[Path | None, typer.Option(help="ONNX file to write (.onnx), for onnxruntime and others.")] = None,
    torch_export: Annotated[Path | None, typer.Option(help="torch.export program to write (.pt2).")] = None,
    block_configs: Annotated[
        Path | None,
        typer.Option(help="Directory to write for serving engines: DeciLM's block_configs layout, LLaMA only."),
    ] = None,
    device: opt.Device = "cpu",
    dtype: opt.Dtype = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Write MODEL, pruned or dense, in one other format, and check that it gives what MODEL gives.

    Nothing is written when it does not.
    """
    import pyprune
    from pyprune.core.errors import InputError

    given = {"onnx": onnx, "torch_export": torch_export, "block_configs": block_configs}
    chosen = [(name, out) for name, out in given.items() if out is not None]
    if len(chosen) != 1:
        raise InputError("give one of --onnx, --torch-export and --block-configs")
    opt.hush_transformers()
    ((name, out),) = chosen
    done = pyprune.export(model, out, name, device=device, dtype=dtype, overwrite=overwrite)
    if as_json:
        checks = [{"name": c.name, "difference": c.difference, "allowed": c.allowed} for c in done.checks]
        print(json.dumps({"out": str(done.out), "format": name, "checks": checks, "notes": done.notes}))
    elif not quiet:
        print(*done.checks, *done.notes, f"written to {done.out}", sep="\n")
