"""Section `score`: benchmarks/e2e/score_cost.py, the scoring pass against the published one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from time import perf_counter

from benchmarks.gpu.bench import BENCHMARKS, run
from benchmarks.gpu.model import model_directory
from benchmarks.gpu.record import Check, Settings


def units(settings: Settings) -> dict[str, Callable[[], Iterator[Check]]]:
    return {"score_cost": lambda: check(settings)}


def check(settings: Settings) -> Iterator[Check]:
    model = model_directory(settings)
    (kind, *_) = json.loads((model / "config.json").read_text(encoding="utf-8")).get("architectures") or ["unnamed"]
    if not kind.endswith("Model"):
        yield Check("score_cost", "skipped", f"it compares embeddings, and {kind} has a head")
        return
    start = perf_counter()
    small = ["--no-compile", "--repeats", "1", "--samples", "8"] if settings.tiny else []
    run(BENCHMARKS / "e2e" / "score_cost.py", settings, "--model", str(model), "--bf16", *small)
    yield Check("score_cost", "passed", seconds=perf_counter() - start)
