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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

import pyprune
from benchmarks.tasks.debian_sections.data import DataError, Record, Task, load
from benchmarks.tasks.debian_sections.evaluate import Encoded, accuracy, encode
from benchmarks.tasks.debian_sections.finetune import CACHE, MINILM, Recipe, finetuned
from pyprune import Kwon, Surgeon
from pyprune.bench.results import Results

BENCHMARK = "debian_sections"
METRIC = "test_accuracy"
SOURCES = ("csrc", "pyprune", "benchmarks/tasks/debian_sections")
BUDGETS = (0.7, 0.6, 0.5, 0.4)
SEEDS = (0, 1, 2)
SAMPLES = 2048


@dataclass(frozen=True)
class Method:
    """A line of the table: a recipe with its settings."""

    name: str
    recipe: Kwon | Surgeon

    @property
    def cotangent(self) -> str:
        """What is differentiated; `none` for scores that read no data."""
        reads_data = getattr(self.recipe, "criterion", "fisher") == "fisher"
        return str(self.recipe.cotangent) if reads_data else "none"

    @property
    def scored_as(self) -> tuple[str, ...]:
        """Methods that agree in this share their scores."""
        return (self.recipe.name, getattr(self.recipe, "criterion", ""), self.cotangent)


def trained_on(cotangent: Literal["labels", "sampled"]) -> tuple[Method, ...]:
    """The published chain and the refit, with and without rearrangement, and pyprune's own recipe, on one cotangent."""
    fisher = Kwon(cotangent=cotangent, rearrange=False, tuning="none")
    return (
        Method("fisher", fisher),
        Method("fisher + rearrangement", replace(fisher, rearrange=True)),
        Method("fisher + rearrangement + mask tuning", replace(fisher, rearrange=True, tuning="mask")),
        Method("fisher + mask tuning", replace(fisher, tuning="mask")),
        Method("fisher + rearrangement + refit", replace(fisher, rearrange=True, tuning="refit")),
        Method("fisher + refit", replace(fisher, tuning="refit")),
        Method("surgeon + refit", Surgeon(cotangent=cotangent)),
    )


METHODS = (
    Method("random", Kwon(criterion="random", tuning="none")),
    Method("magnitude", Kwon(criterion="magnitude", tuning="none")),
    *trained_on("labels"),
    *trained_on("sampled"),
)


@dataclass(frozen=True)
class Point:
    """One cell of the table before its seeds are averaged."""

    method: Method
    budget: float
    seed: int
    accuracy: float


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
    texts = [text for text, _ in data]
    scores: dict[tuple[str, ...], pyprune.Scores] = {}
    for method in methods:
        recipe, key = method.recipe, method.scored_as
        if key not in scores:
            seen = data if method.cotangent == "labels" else texts
            scores[key] = pyprune.score(model, seen, recipe=recipe, tokenizer=tokenizer, seed=seed)
        for budget in budgets:
            plan = pyprune.plan(model, scores[key], {"flops": budget}, recipe=recipe)
            pruned = pyprune.apply(model, plan)
            common = {"scores": scores[key], "recipe": recipe, "tokenizer": tokenizer}
            pyprune.tune(pruned, model, plan, texts, **common, inplace=True)
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
            cotangent = point.method.cotangent
            case = f"{origin} samples={len(data)} flops={point.budget} cotangent={cotangent} seed={seed}"
            results.add(case, point.method.name, METRIC, point.accuracy)
            results.write()  # at once: a run takes the better part of an hour
            print(f"seed {seed}  {point.budget:.0%} FLOPs  {point.accuracy:.2%}  {point.method.name}, {cotangent}")


if __name__ == "__main__":
    main()
