"""What pruning costs in accuracy: test accuracy of the fine-tuned model at several FLOPs budgets, method by method.

    python -m benchmarks.tasks.debian_sections.accuracy             # rows go to benchmarks/results/<device>.csv

The fine-tuned model stays; a seed draws the 2,048 calibration examples from the training split, the sampled labels and
the random scores. A model is scored once for each seed and cotangent, and planned anew for each budget. The task's
labels are read by the cotangent `labels` alone.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import pyprune
from benchmarks.tasks.debian_sections.data import DataError, Record, Task, load
from benchmarks.tasks.debian_sections.evaluate import Encoded, accuracy, encode
from benchmarks.tasks.debian_sections.finetune import CACHE, MINILM, Recipe, finetuned
from pyprune.bench.results import Results

BENCHMARK = "debian_sections"
METRIC = "test_accuracy"
SOURCES = ("csrc", "pyprune", "benchmarks/tasks/debian_sections")
BUDGETS = (0.7, 0.6, 0.5, 0.4)
SEEDS = (0, 1, 2)
SAMPLES = 2048


@dataclass(frozen=True)
class Method:
    """Settings of the scores (shared by methods that score alike) and of the plan and its tuning."""

    name: str
    scoring: dict[str, Any]
    rearrange: bool = False
    tuning: str = "none"


def fisher(cotangent: str) -> tuple[Method, ...]:
    """The published chain and the refit, with and without rearrangement, on Fisher information of one cotangent."""
    scoring = {"criterion": "fisher", "cotangent": cotangent}
    return (
        Method("fisher", scoring),
        Method("fisher + rearrangement", scoring, rearrange=True),
        Method("fisher + rearrangement + mask tuning", scoring, rearrange=True, tuning="mask"),
        Method("fisher + mask tuning", scoring, tuning="mask"),
        Method("fisher + rearrangement + refit", scoring, rearrange=True, tuning="refit"),
        Method("fisher + refit", scoring, tuning="refit"),
    )


METHODS = (
    Method("random", {"criterion": "random"}),
    Method("magnitude", {"criterion": "magnitude"}),
    *fisher("labels"),
    *fisher("sampled"),
)


@dataclass(frozen=True)
class Point:
    """One cell of the table before its seeds are averaged."""

    method: Method
    budget: float
    seed: int
    accuracy: float

    @property
    def cotangent(self) -> str:
        return self.method.scoring.get("cotangent", "none")


def calibration(task: Task, samples: int, seed: int) -> list[tuple[str, int]]:
    """`samples` texts of the training split with their labels, drawn without replacement."""
    drawn: Sequence[Record] = random.Random(seed).sample(task.train, min(samples, len(task.train)))
    return [(r.text, task.label(r)) for r in drawn]


def measure(
    model: torch.nn.Module,
    tokenizer: Any,
    data: Sequence[tuple[str, int]],
    test: Encoded,
    seed: int,
    methods: Sequence[Method] = METHODS,
    budgets: Sequence[float] = BUDGETS,
) -> Iterator[Point]:
    """Accuracy on `test` of every method at every budget, for one seed's calibration `data`."""
    unlabelled = [text for text, _ in data]
    lengths = [len(ids) for ids in tokenizer(unlabelled, truncation=True)["input_ids"]]
    length = sum(lengths) / len(lengths)
    scores: dict[str, pyprune.Scores] = {}
    for method in methods:
        key = repr(method.scoring)
        if key not in scores:
            seen = data if method.scoring.get("cotangent") == "labels" else unlabelled
            scores[key] = pyprune.score(model, seen, tokenizer=tokenizer, seed=seed, **method.scoring)
        for budget in budgets:
            plan = pyprune.plan(model, scores[key], {"flops": budget}, length=length, rearrange=method.rearrange)
            pruned = pyprune.apply(model, plan)
            if method.tuning != "none":
                pyprune.tune(
                    pruned,
                    model,
                    plan,
                    unlabelled,
                    scores=scores[key],
                    tokenizer=tokenizer,
                    inplace=True,
                    tuning=method.tuning,
                )
            yield Point(method, budget, seed, accuracy(pruned, test))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tsv", help="records instead of asking apt")
    parser.add_argument("--base", default=MINILM, help="hub id or directory of the model to fine-tune")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where fine-tuned models are kept")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="calibration examples")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--budgets", type=float, nargs="+", default=BUDGETS, help="FLOPs that stay, as shares")
    parser.add_argument("--methods", nargs="+", choices=sorted({m.name for m in METHODS}), help="default: all")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, help="CSV file (default: benchmarks/results/<device>.csv)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    methods = [m for m in METHODS if args.methods is None or m.name in args.methods]
    try:
        task = load(args.tsv)
        fine_tuned = finetuned(task, args.base, Recipe(), args.cache)
    except (DataError, pyprune.PyPruneError) as error:
        sys.exit(f"error: {error}")
    test = encode(task.test, task, fine_tuned.tokenizer)
    # What was pruned: the hash of the data, and the cache key of the model, which covers data, base model and recipe.
    origin = f"data={task.sha256[:12]} model={fine_tuned.directory.name}"
    results = Results(BENCHMARK, SOURCES, args.results)
    results.add(origin, "dense", METRIC, fine_tuned.report["test_accuracy"])
    for seed in args.seeds:
        data = calibration(task, args.samples, seed)
        for point in measure(fine_tuned.model, fine_tuned.tokenizer, data, test, seed, methods, args.budgets):
            case = f"{origin} samples={len(data)} flops={point.budget} cotangent={point.cotangent} seed={seed}"
            results.add(case, point.method.name, METRIC, point.accuracy)
            results.write()  # at once: a run takes the better part of an hour
            print(
                f"seed {seed}  {point.budget:.0%} FLOPs  {point.accuracy:.2%}  {point.method.name}, {point.cotangent}"
            )


if __name__ == "__main__":
    main()
