"""`pyprune bench`: the kernels against their peers, on this machine."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from pyprune.cli import options as opt
from pyprune.core.errors import InputError

Ops = Annotated[
    list[str] | None, typer.Argument(help="Ops, all if none is given: see pyprune info.", metavar="[OP]...")
]
Providers = Annotated[
    str | None,
    typer.Option(help="Only these, separated by commas: eager, compile, pyprune triton, ... Default: all there are."),
]
Csv = Annotated[
    Path | None, typer.Option(help="Merge the rows into this .csv file, or into <device>.csv in this folder.")
]
Plot = Annotated[Path | None, typer.Option(help="Draw a roofline into this PNG file.")]
Repeats = Annotated[int | None, typer.Option(min=1, help="Rounds a case. Default: what fits in 1.5 seconds.")]
Tiny = Annotated[bool, typer.Option("--tiny", help="One small case an op and nothing compiled: to see that it works.")]


def bench(
    ops: Ops = None,
    providers: Providers = None,
    device: opt.Device = "auto",
    csv: Csv = None,
    plot: Plot = None,
    repeats: Repeats = None,
    tiny: Tiny = False,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Time ops beside eager torch, torch.compile and other libraries: in turns, medians, with the device's ceilings."""
    from rich.console import Console
    from tqdm import tqdm

    from pyprune.api import pick_device
    from pyprune.bench.kernels import chosen_ops, measure, record, unknown_providers
    from pyprune.bench.results import Results, device_name, read, table_path
    from pyprune.report import bench as report

    chosen = chosen_ops(ops or [])
    device = pick_device(device)
    _check_device(device)
    wanted = [name.strip() for name in (providers or "").split(",") if name.strip()]
    if unknown := unknown_providers(chosen, device, wanted):
        raise InputError(f"providers: nobody is called {unknown[0]!r} in {', '.join(op.name for op in chosen)}")
    if plot is not None and plot.suffix.lower() != ".png":
        raise InputError(f"plot={str(plot)!r} must end in .png")
    if csv is not None:
        _check_writable(table_path(csv, device))
        read(table_path(csv, device))  # rows are merged into a table of the same columns, or into none
    if plot is not None:
        _check_writable(plot)

    console, found = Console(), []
    for op in tqdm(chosen, "bench", disable=quiet or as_json, leave=False):
        results = Results(op.name, path=csv and table_path(csv, device), device=device)
        for measured in measure(op, device, wanted, repeats, tiny):
            found.append(measured)
            record(results, measured)
            if not (quiet or as_json):
                console.print(report.table(measured))
        if csv is not None:
            results.write()  # after every op: an interruption loses one at most
    if plot is not None:
        report.roofline(found, plot, device_name(device))
    if as_json:
        print(json.dumps({"device": device_name(device), "cases": [report.as_json(m) for m in found]}))
    elif not quiet:
        print(*report.summary(found), sep="\n")


def _check_device(device: str) -> None:
    import torch

    try:
        kind = torch.device(device).type
    except RuntimeError:
        kind = ""
    if kind not in ("cpu", "cuda"):
        raise InputError(f"device={device!r}: choose auto, cpu, cuda, cuda:1, ...")
    if kind == "cuda" and (torch.device(device).index or 0) >= torch.cuda.device_count():
        raise InputError(f"device={device!r}: torch {torch.__version__} finds {torch.cuda.device_count()} CUDA devices")


def _check_writable(path: Path) -> None:
    if path.is_dir():
        raise InputError(f"{str(path)!r} is a folder: give a file")
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InputError(f"{str(path)!r} cannot be written: {folder} is no folder that can be written to")
