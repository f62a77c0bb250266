"""Prune the dense model of a task, measure what is left, and add a row to `benchmarks/results/tasks.csv`.

    python -m benchmarks.tasks.run --task digits --recipe surgeon --budget 0.5 --seed 0
    python -m benchmarks.tasks.run --task digits --recipe kwon --set criterion=magnitude tuning=none --budget params=0.5
    python -m benchmarks.tasks.run --task digits --dense              # train, or load, the dense model; no row

The dense model stays; `--seed` draws the calibration samples and whatever the recipe draws. Labels are read with
`--set cotangent=labels` alone. `--recover` retrains the pruned model on the dense one's answers (no labels):

    python -m benchmarks.tasks.run --task digits --recipe lfpr --budget params=0.4 --recover method=rest targets=soft

`--recipe torch-pruning` prunes with the package of that name (`benchmarks/tasks/peers.py`); where that fails, the row
says how. `--hub` takes the papers' own data and models from a hub (`benchmarks/tasks/hub/entries.py`):

    python -m benchmarks.tasks.run --hub --task textvqa --recipe lfpr --budget params=0.5 --hub-samples 500
"""

from __future__ import annotations

import argparse
import ast
import copy
import platform
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

import pyprune
from benchmarks.tasks import results
from benchmarks.tasks.hub import kinds as hub
from benchmarks.tasks.hub.entries import ENTRIES
from benchmarks.tasks.peers import Made, PeerFailure, TorchPruning
from benchmarks.tasks.results import TaskRow, words
from benchmarks.tasks.task import DataError, Dense, Task, TrainedTask, find, task_names
from pyprune.bench.results import commit_name, device_name
from pyprune.bench.timing import interleave

SAMPLES = 512
BATCH = 16
_SOURCES = ("csrc", "triton_kernels", "pyprune", "benchmarks/tasks")


def recipes() -> dict[str, Any]:
    """The public recipes, and the other packages, by name."""
    public = [getattr(pyprune, name) for name in pyprune.__all__]
    own = {kind.name: kind for kind in public if isinstance(kind, type) and {"name", "tune"} <= set(dir(kind))}
    return own | {TorchPruning.name: TorchPruning}


def recipe_of(name: str, settings: dict[str, Any]) -> Any:
    """The recipe with its settings. Raises InputError for a name, a setting or a value that it does not have."""
    if name not in recipes():
        raise pyprune.InputError(f"recipe={name!r}: choose one of {', '.join(recipes())}")
    try:
        return recipes()[name](**settings)
    except TypeError as error:
        raise pyprune.InputError(f"recipe {name!r}: {error}") from None


def measure(
    task: Task,
    dense: Dense,
    recipe: Any,
    resource: str,
    budget: float,
    *,
    settings: str = "",
    samples: int = SAMPLES,
    recoveries: Iterable[dict[str, Any] | None] = (None,),
    recovery_samples: int | None = None,
    seed: int = 0,
    dense_seed: int = 0,
    device: str = "cpu",
    repeats: int = 15,
) -> Iterator[TaskRow]:
    """Prune a copy of the dense model to the share `budget` of `resource`, once. Raises PyPruneError.

    A row for each of the `recoveries`: settings of `pyprune.retrain`, or None for no retraining; the next is asked for
    when the row before is out. What another package does not manage is a row without figures.
    """
    model = dense.model.to(device)
    labels = getattr(recipe, "cotangent", None) == "labels"
    data = task.calibration(samples, seed, labels)
    row = TaskRow(
        date=date.today().isoformat(),
        commit=commit_name(_SOURCES),
        device=device_name(device),
        torch=torch.__version__,
        transformers=version("transformers"),
        python=platform.python_version(),
        task=task.name,
        model=dense.report["key"],
        dense_seed=dense_seed,
        recipe=recipe.name,
        settings=settings,
        resource=resource,
        budget=budget,
        samples=len(data),
        recovery="none",
        seed=seed,
        metric=task.metric,
        dense=dense.report["test"],
        dense_params=sum(p.numel() for p in model.parameters()),
        batch=BATCH,
    )
    try:
        made = _pruned(task, model, data, recipe, resource, budget, seed)
    except PeerFailure as failure:
        yield replace(row, failure=str(failure))
        return
    row = replace(
        row,
        achieved=made.achieved,
        pruned=task.evaluate(made.model),
        params=sum(p.numel() for p in made.model.parameters()),
        dense_flops=made.dense_flops,
        flops=made.flops,
    )
    for recover in recoveries:
        yield _recovered(task, model, made, row, recover, recovery_samples or task.recovery_samples, repeats)


def _recovered(
    task: Task, dense: nn.Module, made: Made, row: TaskRow, recover: dict[str, Any] | None, samples: int, repeats: int
) -> TaskRow:
    """`row` with what `recover` makes of a copy of the pruned model, and with its latency."""
    model, stages = made.model, copy.copy(made.stages.log)
    if recover is not None:
        rows = task.recovery(samples, row.seed)
        options = {"tokenizer": task.tokenizer, "samples": len(rows), "seed": row.seed, "scores": made.scores}
        with made.stages.stage("recover"):
            model, _ = pyprune.retrain(model, dense, rows, **options, **recover)
        stages.append(made.stages.log.pop())
        row = replace(row, recovery=recovery_words(recover, len(rows)), recovered=task.evaluate(model))
    dense_ms, pruned_ms = _latency(task, dense, model, repeats)
    return replace(
        row,
        dense_ms=dense_ms,
        pruned_ms=pruned_ms,
        seconds=words({stage.name: stage.seconds for stage in stages}),
        peak_mib=words({stage.name: stage.cuda_mib or stage.host_mib for stage in stages}),
    )


def recovery_words(recover: dict[str, Any] | None, rows: int) -> str:
    """How a row names its recovery: the settings of retraining and the samples of it."""
    return "none" if recover is None else words({"method": "rest", **recover, "rows": rows})


def _pruned(
    task: Task, model: nn.Module, data: list[Any], recipe: Any, resource: str, budget: float, seed: int
) -> Made:
    """A pruned copy of `model`. Raises PyPruneError, or PeerFailure of another package."""
    if isinstance(recipe, TorchPruning):
        return recipe.prune(task, model, data, resource, budget, seed)
    common = {"tokenizer": task.tokenizer, "samples": len(data), "seed": seed}
    made = pyprune.prune(model, {resource: budget}, data, recipe=recipe, length=task.length, **common)
    anatomy, plan = made.anatomy, made.plan
    whole = {"flops": anatomy.flops(plan.length), "params": anatomy.params()}
    return Made(
        model=made.pruned,
        achieved=plan.cost(anatomy, resource) / whole[resource],
        dense_flops=float(whole["flops"]),
        flops=float(plan.cost(anatomy, "flops")),
        stages=made.stages,
        scores=made.scores,
    )


@torch.inference_mode()
def _latency(task: Task, dense: nn.Module, pruned: nn.Module, repeats: int) -> tuple[float, float]:
    """Milliseconds of one forward pass of each, timed in turns."""
    device = next(dense.parameters()).device
    inputs = {name: tensor.to(device) for name, tensor in task.example(BATCH).items()}
    calls = {"dense": lambda: dense(**inputs), "pruned": lambda: pruned(**inputs)}
    timings = interleave(calls, repeats=repeats, warmup=2, device=str(device))
    return timings["dense"].median * 1e3, timings["pruned"].median * 1e3


def parsed_settings(given: list[str]) -> dict[str, Any]:
    """`["draws=4", "tuning=none"]` as keyword arguments. Raises InputError for a word without `=`."""
    found = {}
    for word in given:
        key, equals, value = word.partition("=")
        if not equals:
            raise pyprune.InputError(f"--set {word}: expected name=value")
        try:
            found[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[key] = value
    return found


def parsed_budget(text: str) -> tuple[str, float]:
    """`0.5` and `flops=0.5` are half of the FLOPs. Raises BudgetError for what is no share of FLOPs or parameters."""
    resource, equals, share = text.rpartition("=")
    try:
        value = float(share)
    except ValueError:
        value = 0.0
    resource = resource if equals else "flops"
    if not 0 < value <= 1 or resource not in ("flops", "params"):
        raise pyprune.BudgetError(f"--budget {text}: expected a share in (0, 1], or flops=SHARE or params=SHARE")
    return resource, value


def _task(args: argparse.Namespace) -> Task:
    """The task that is asked for. Raises InputError or DataError."""
    if args.hub:
        return hub.find(args.task, args.model, args.hub_samples, args.device)
    if args.task not in task_names():
        where = "with --hub; without it " if args.task in ENTRIES else ""
        raise pyprune.InputError(f"--task {args.task}: {where}choose one of {', '.join(task_names())}")
    if args.model is not None or args.hub_samples is not None:
        raise pyprune.InputError("--model and --hub-samples are for the tasks of --hub")
    return find(args.task)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--task",
        required=True,
        metavar="NAME",
        help=f"one of {', '.join(task_names())}; with --hub one of {', '.join(ENTRIES)}",
    )
    parser.add_argument("--hub", action="store_true", help="data and models of the papers, streamed from a hub")
    parser.add_argument("--model", metavar="ID", help="with --hub: another checkpoint than the papers'")
    parser.add_argument("--hub-samples", type=int, metavar="N", help="with --hub: measure on the first N samples")
    parser.add_argument("--recipe", default="surgeon", help=f"one of {', '.join(recipes())} (default: surgeon)")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings of the recipe")
    parser.add_argument("--budget", default="0.5", help="share that stays: 0.5, flops=0.5 or params=0.5")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="calibration samples")
    parser.add_argument("--recover", nargs="*", metavar="NAME=VALUE", help="retrain, with settings of pyprune.retrain")
    parser.add_argument("--recovery-samples", type=int, help="unlabelled samples for that (default: the task's)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dense-seed", type=int, default=0, help="of the dense model's training")
    parser.add_argument("--dense", action="store_true", help="only train, or load, the dense model and show its report")
    parser.add_argument("--keep", action="store_true", help="with --dense: keep it in fp16 below benchmarks/tasks/")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=results.FILE)
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    try:
        recipe = recipe_of(args.recipe, parsed_settings(args.set))
        resource, budget = parsed_budget(args.budget)
        if args.recover is not None and isinstance(recipe, TorchPruning):
            raise pyprune.InputError(f"--recover: retrains what pyprune pruned, not the models of {recipe.name}")
        task = _task(args)
        if args.keep and not isinstance(task, TrainedTask):
            raise DataError(f"--keep: the dense model of {args.task} is too large for the repository")
        dense = task.dense(args.dense_seed)
        if args.dense:
            print("\n".join(f"{key}: {value}" for key, value in dense.report.items()))
            if isinstance(task, TrainedTask) and args.keep:
                print(f"kept in {task.keep(args.dense_seed)}")
            return 0
        limited = [] if args.hub_samples is None else [f"hub-samples={args.hub_samples}"]
        settings = " ".join(sorted(args.set) + limited)
        options = {"samples": args.samples, "seed": args.seed, "device": args.device}
        if args.recover is not None:
            options |= {"recoveries": [parsed_settings(args.recover)], "recovery_samples": args.recovery_samples}
        (row,) = measure(
            task, dense, recipe, resource, budget, settings=settings, dense_seed=args.dense_seed, **options
        )
        results.append(row, args.results)
    except (DataError, pyprune.PyPruneError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if row.failure:
        print(f"{row.task}, {row.recipe} {row.settings}: failed: {row.failure}")
        return 0
    print(f"{row.task}, {row.recipe} {row.settings}: {row.achieved:.1%} of {row.resource} (asked {row.budget:.0%})")
    after = "" if row.recovered is None else f", recovered {row.recovered:.4g}"
    print(f"{row.metric}: dense {row.dense:.4g}, pruned {row.pruned:.4g}{after}")
    print(f"{row.dense_ms:.1f} ms to {row.pruned_ms:.1f} ms; stages, s: {row.seconds}; peak MiB: {row.peak_mib}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
