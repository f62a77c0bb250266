"""The table of every task: recipes and ways to recover at several budgets, row by row; what is there is left out.

    python -m benchmarks.tasks.table                         # all tasks: hours
    python -m benchmarks.tasks.table --task digits pydoc_lm

Budgets are shares of the prunable parameters. Half of them is measured with three seeds, the others with one.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.tasks import results
from benchmarks.tasks.over_tasks import over_tasks
from benchmarks.tasks.results import TaskRow
from benchmarks.tasks.run import SAMPLES, measure, recipe_of, recovery_words
from benchmarks.tasks.task import Task
from pyprune.bench.results import device_name

BUDGETS = {0.5: 3, 0.4: 1, 0.6: 1, 0.8: 1}  # share of the parameters: seeds
ABLATION = {0.5: 1, 0.4: 1}
RESOURCE = "params"


@dataclass(frozen=True)
class Variant:
    """A recipe with its settings, and those of retraining behind it, None for none.

    `budgets` gives the seeds of each budget. `samples` bounds what it is calibrated on, where all would take hours.
    """

    recipe: str
    settings: dict[str, Any] = field(default_factory=dict)
    recover: dict[str, Any] | None = None
    budgets: dict[float, int] = field(default_factory=lambda: BUDGETS)
    samples: int | None = None

    @property
    def words(self) -> str:
        return " ".join(sorted(f"{name}={value}" for name, value in self.settings.items()))


# The models are small: what is published as 5e-5, for BERT-base, is 2.5e-4 for them.
REST = {"learning_rate": 2.5e-4}
_REFIT = {"tuning": "refit"}
VARIANTS = (
    Variant("kwon", {"criterion": "random", "tuning": "none"}),
    Variant("kwon", {"criterion": "magnitude", "tuning": "none"}),
    Variant("flap", {"criterion": "wanda_sp", "tuning": "none"}),
    Variant("flap"),
    Variant("kwon", {"cotangent": "labels", "tuning": "none", "rearrange": False}),
    Variant("kwon", {"cotangent": "labels", "tuning": "none"}),
    Variant("kwon", {"cotangent": "labels", "tuning": "mask"}),
    Variant("lfpr", {"compat": "published"}),
    Variant("lfpr"),
    Variant("lfpr", {}, REST, ABLATION),
    Variant("lfpr", {"calibrate": True}),
    Variant("lfpr", _REFIT),
    Variant("lfpr", _REFIT, REST),
    Variant("lfpr", _REFIT, {**REST, "targets": "hard"}, ABLATION),
    Variant("lfpr", _REFIT, {**REST, "schedule": "constant"}, ABLATION),
    Variant("lfpr", _REFIT, {**REST, "features": 1.0}, ABLATION),
    Variant("lfpr", _REFIT, {**REST, "method": "lora"}, ABLATION),
    Variant("lfpr", _REFIT, {**REST, "method": "full"}, ABLATION),
    Variant("lfpr", {**_REFIT, "calibrate": True}),
    Variant("lfpr", {**_REFIT, "calibrate": True}, REST),
    Variant("surgeon"),
    Variant("surgeon", {}, REST),
    Variant("torch-pruning", {"importance": "magnitude"}),
    Variant("torch-pruning", {"importance": "taylor", "cotangent": "labels"}),
    Variant("torch-pruning", {"importance": "hessian", "cotangent": "labels"}, samples=64),
)


def wanted() -> Iterator[tuple[Variant, float, int]]:
    """`(variant, budget, seed)` of every row of a task: first one seed of all, then the others."""
    for seed in range(max(BUDGETS.values())):
        for budget in BUDGETS:
            yield from ((v, budget, seed) for v in VARIANTS if seed < v.budgets.get(budget, 0))


def known(rows: list[TaskRow], task: str, model: str, device: str) -> set[tuple[object, ...]]:
    """What of a task is measured: as `identity` says it."""
    own = (row for row in rows if (row.task, row.model, row.device) == (task, model, device_name(device)))
    return {(row.recipe, row.settings, row.recovery, row.budget, row.seed) for row in own if row.resource == RESOURCE}


def identity(variant: Variant, budget: float, seed: int, rows: int) -> tuple[object, ...]:
    """What a row is, where retraining has `rows` samples."""
    return variant.recipe, variant.words, recovery_words(variant.recover, rows), budget, seed


def missing(task: Task, key: str, path: Path, device: str) -> dict[tuple[object, ...], list[Variant]]:
    """Variants whose rows are not in the file, by what they have in common: recipe, settings, budget and seed."""
    found = known(results.read(path), task.name, key, device)
    rows = min(task.recovery_samples, len(task.rows(labels=False)))
    groups: dict[tuple[object, ...], list[Variant]] = defaultdict(list)
    for variant, budget, seed in wanted():
        if identity(variant, budget, seed, rows) not in found:
            groups[variant.recipe, variant.words, budget, seed].append(variant)
    return groups


def fill(task: Task, path: Path, device: str, samples: int = SAMPLES, **sizes: Any) -> int:
    """Measure and write what is missing of one task, each model pruned once; how many rows that was."""
    dense, made = task.dense(0), 0
    groups = missing(task, dense.report["key"], path, device)
    for (name, settings, budget, seed), variants in tqdm(groups.items(), desc=task.name, disable=not groups):
        recipe = recipe_of(name, dict(variants[0].settings))
        options = {"settings": settings, "recoveries": [v.recover for v in variants], "seed": seed, "device": device}
        own = {**sizes, "samples": min(samples, variants[0].samples or samples)}
        for row in measure(task, dense, recipe, RESOURCE, budget, **options, **own):
            results.append(row, path)
            made += 1
    return made


def main(arguments: list[str] | None = None) -> int:
    def measured(task: Task, args: argparse.Namespace) -> None:
        print(f"{task.name}: {fill(task, args.results, args.device, samples=args.samples)} rows")

    return over_tasks(__doc__, measured, arguments)


if __name__ == "__main__":
    sys.exit(main())
