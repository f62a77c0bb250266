"""The command line of what measures one task after another."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch

import pyprune
from benchmarks.tasks import results
from benchmarks.tasks.run import SAMPLES
from benchmarks.tasks.task import DataError, Task, find, task_names


def over_tasks(
    description: str | None, measured: Callable[[Task, argparse.Namespace], None], arguments: list[str] | None
) -> int:
    """Call `measured(task, args)` for each task asked for; what fails is a line, and the exit code 2 at the end.

    `args` has the calibration `samples`, the `device` and the file of `results`.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", nargs="+", default=task_names(), choices=task_names(), help="default: all")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="calibration samples")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=results.FILE)
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    failed = 0
    for name in args.task:
        try:
            measured(find(name), args)
        except (DataError, pyprune.PyPruneError, ValueError) as error:
            failed = 2
            print(f"error: {name}: {error}", file=sys.stderr)
    return failed
