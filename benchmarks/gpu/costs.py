"""Section `costs`: what scoring passes and retraining steps cost beside published and plain ones (benchmarks/e2e)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from time import perf_counter

from benchmarks.gpu.bench import BENCHMARKS, run
from benchmarks.gpu.model import model_directory
from benchmarks.gpu.record import Check, Settings

# Arguments of each script on a GPU, and of a dry run.
ARGUMENTS: dict[str, tuple[list[str], list[str]]] = {
    "score_cost": (["--bf16"], ["--bf16", "--no-compile", "--repeats", "1", "--samples", "8"]),
    "rest_cost": (
        ["--shape", "base", "--length", "128"],
        ["--shape", "tiny", "--length", "8", "--steps", "1", "--repeats", "1"],
    ),
    "lfpr_cost": (["--samples", "64"], ["--samples", "8", "--length", "6", "--repeats", "1"]),
}


def units(settings: Settings) -> dict[str, Callable[[], Iterator[Check]]]:
    return {name: partial(check, name, settings) for name in ARGUMENTS}


def check(name: str, settings: Settings) -> Iterator[Check]:
    arguments = list(ARGUMENTS[name][settings.tiny])
    if name == "score_cost":
        model = model_directory(settings)
        config = json.loads((model / "config.json").read_text(encoding="utf-8"))
        (kind, *_) = config.get("architectures") or ["unnamed"]
        if not kind.endswith("Model"):
            yield Check(name, "skipped", f"it compares embeddings, and {kind} has a head")
            return
        arguments += ["--model", str(model)]
    start = perf_counter()
    run(BENCHMARKS / "e2e" / f"{name}.py", settings, *arguments)
    yield Check(name, "passed", seconds=perf_counter() - start)
