"""ReSt against full fine-tuning of equal wall time at three sizes: two rows of `benchmarks/results/tasks.csv` each.

    python -m benchmarks.tasks.equal_time                      # all tasks
    python -m benchmarks.tasks.equal_time --task digits

Both retrain copies of one pruned model on the same samples and the dense model's distributions. What ReSt takes is
measured with its search for the break-point; two short runs of full fine-tuning then tell for how many epochs it may
run. How long it ran in the end is in its row.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

from benchmarks.tasks import results
from benchmarks.tasks.over_tasks import over_tasks
from benchmarks.tasks.results import TaskRow
from benchmarks.tasks.run import measure, recipe_of
from benchmarks.tasks.table import RESOURCE, REST
from benchmarks.tasks.task import Task

SIZES = (0.6, 0.5, 0.4)
SETTINGS = {"tuning": "refit"}
FULL = {**REST, "method": "full"}
# Shares of an epoch whose seconds tell what an epoch takes, and what is spent before the first step.
_PROBES = (0.1, 0.3)


def recoveries(rows: list[TaskRow]) -> Iterator[dict[str, Any]]:
    """ReSt, two probes of full fine-tuning, and the run that takes as long as ReSt; `rows` grows by each before."""
    yield REST
    for epochs in _PROBES:
        yield {**FULL, "epochs": epochs}
    yield {**FULL, "epochs": round(equal_epochs(*(row.stage_seconds["recover"] for row in rows)), 2)}


def equal_epochs(wanted: float, *probed: float) -> float:
    """Epochs that take `wanted` seconds, where those of `_PROBES` took `probed`; not fewer than the shorter of them."""
    epoch = (probed[1] - probed[0]) / (_PROBES[1] - _PROBES[0])
    before = probed[0] - _PROBES[0] * epoch
    return max((wanted - before) / epoch, _PROBES[0]) if epoch > 0 else _PROBES[0]


def compare(task: Task, device: str, **sizes: Any) -> Iterator[TaskRow]:
    """The row of ReSt and that of full fine-tuning, for each size."""
    dense = task.dense(0)
    for budget in tqdm(SIZES, desc=task.name):
        rows: list[TaskRow] = []
        options = {"settings": results.words(SETTINGS), "device": device, **sizes}
        recipe = recipe_of("lfpr", SETTINGS)
        for row in measure(task, dense, recipe, RESOURCE, budget, recoveries=recoveries(rows), **options):
            rows.append(row)
        yield rows[0]
        yield rows[-1]


def main(arguments: list[str] | None = None) -> int:
    def measured(task: Task, args: argparse.Namespace) -> None:
        for row in compare(task, args.device, samples=args.samples):
            results.append(row, args.results)
            took = row.stage_seconds["recover"]
            print(f"{task.name}, {row.budget:.0%}: {row.recovery}: {row.recovered:.4g} in {took:.0f} s")

    return over_tasks(__doc__, measured, arguments)


if __name__ == "__main__":
    sys.exit(main())
