"""Section `main`: `pyprune prune` at 60 % of the FLOPs in every dtype, and `pyprune verify` of what it wrote."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from benchmarks.gpu.model import model_directory
from benchmarks.gpu.record import Check, Settings
from pyprune.bench.results import Results, table_path
from pyprune.cli.app import app
from pyprune.report.prune import table

BUDGET = 0.6
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def units(settings: Settings) -> dict[str, Callable[[], Iterator[Check]]]:
    return {label: partial(check, label, settings) for label in DTYPES}


def check(label: str, settings: Settings) -> Iterator[Check]:
    if label == "fp16" and torch.device(settings.device).type == "cpu":
        yield Check(label, "skipped", "float16 is a dtype for GPUs")
        return
    model, out = model_directory(settings), Path(settings.scratch) / f"pruned-{label}"
    first = label == "fp32"
    samples = 16 if settings.tiny else 512 if first else 128
    start = perf_counter()
    report = prune(
        str(model), "--flops", str(BUDGET), "--out", str(out), "--device", settings.device, "--dtype", DTYPES[label],
        "--samples", str(samples), *(["--compare"] if first else []),
    )  # fmt: skip
    print(table(report))
    yield Check(f"{label}: prune", "passed", speed(report), perf_counter() - start)
    yield from judge(label, report)

    if first or not settings.tiny:
        yield verify(label, out, settings)
    if settings.results:
        write_rows(report, f"{model.name} {label}", Path(settings.results), settings.device)


def prune(*arguments: str) -> dict[str, Any]:
    """The report of `pyprune prune`, which runs in this process."""
    with redirect_stdout(io.StringIO()) as printed:
        app(["prune", *arguments, "--overwrite", "--json"], standalone_mode=False)
    return json.loads(printed.getvalue())


def verify(label: str, checkpoint: Path, settings: Settings) -> Check:
    """`pyprune verify` of what was written, in a new process."""
    arguments = ["verify", str(checkpoint), "--device", settings.device]
    command = [sys.executable, "-c", "from pyprune.cli import main; main()", *arguments]
    start = perf_counter()
    # Started in the scratch folder: a Python that is given -c looks into its working folder first.
    done = subprocess.run(command, cwd=settings.scratch, capture_output=True, text=True)
    lines = (done.stdout.strip() or done.stderr.strip()).splitlines()
    status = "failed" if done.returncode else "passed"
    return Check(f"{label}: reload in a new process", status, lines[-1] if lines else "", perf_counter() - start)


def speed(report: dict[str, Any]) -> str:
    return ", ".join(f"{x['batch']}x{x['length']} {x['speedup']:.2f} times as fast" for x in report["latency_ms"])


def judge(label: str, report: dict[str, Any]) -> Iterator[Check]:
    """What must hold of every run, whatever the model and the device."""
    for c in report["checks"]:
        detail = f"max abs difference {c['difference']:.2e}, allowed {c['allowed']:.1e}"
        yield Check(f"{label}: {c['name']}", "passed" if c["equal"] else "failed", detail)
    dense, pruned = report["blocks"]["flops"]
    within = pruned <= BUDGET * dense
    yield Check(f"{label}: budget", "passed" if within else "failed", f"{pruned / dense:.4f} of the FLOPs")
    values = {f"{stage} {k}": v for stage, found in report["fidelity"].items() for k, v in found.items()}
    broken = [name for name, value in values.items() if not math.isfinite(value)]
    shown = ", ".join(f"{k} {v:.4f}" for k, v in report["fidelity"].get("this checkpoint", {}).items())
    yield Check(f"{label}: fidelity", "failed" if broken else "passed", f"not finite: {broken}" if broken else shown)


def write_rows(report: dict[str, Any], case: str, folder: Path, device: str) -> None:
    results = Results("main_job", path=table_path(folder, device), device=device)
    for x in report["latency_ms"]:
        shape = f"{case} {x['batch']}x{x['length']}"
        for model in ("dense", "pruned"):
            results.add(shape, model, "ms", x[model])
        results.add(shape, "pruned", "times as fast as dense", x["speedup"])
    for stage, found in report["fidelity"].items():
        for metric, value in found.items():
            results.add(case, stage, metric, value)
    for stage in report["stages"]:
        results.add(case, stage["name"], "s", stage["seconds"])
        results.add(case, stage["name"], "peak GPU MiB", stage["cuda_mib"] or 0)
    results.write()
