"""What every task offers to the runner: data of a fixed split, a dense model, and one figure of merit.

A task is a package `benchmarks/tasks/<name>/` whose module `task` has a subclass of `Task` called `TASK`.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import pkgutil
import random
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

FOLDER = Path(__file__).parent
BASELINES = FOLDER / "baselines"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "pyprune"
# The largest dense model, in fp16, that is kept in the repository.
KEPT_BYTES = 8_000_000
_REPORT = "dense.json"


class DataError(RuntimeError):
    """A task's data is not on this machine or not readable; the message says what to do."""


@dataclass(frozen=True)
class Dense:
    """A trained dense model in eval mode.

    `report` holds what it reached on `dev` and `test`, the `seconds` of training (wall) and `cpu_seconds`, its
    `origin` (`trained`, `cache` or `baselines`) and the hash `key` of everything that it depends on.
    """

    model: nn.Module
    report: dict[str, Any]


class Task(ABC):
    """One task. Rows are whatever `pyprune` takes as data: texts, or mappings from argument names to tensors.

    `metric` names the figure of `evaluate`. `tokenizer` is for rows that are texts. `length` is the number of tokens at
    which FLOPs are counted; None: the calibration data's own mean. Retraining reads so many `recovery_samples`.
    """

    name: str
    metric: str = "accuracy"
    tokenizer: Any = None
    length: float | None = None
    recovery_samples: int = 4096

    @abstractmethod
    def dense(self, seed: int = 0, cache: Path = CACHE) -> Dense:
        """The trained model of this seed: from the cache, or trained now."""

    @abstractmethod
    def evaluate(self, model: nn.Module, split: str = "test") -> float:
        """The metric on `dev` or `test`; the model is left in eval mode."""

    @abstractmethod
    def rows(self, labels: bool) -> Sequence[Any]:
        """The training split, with or without its labels."""

    @abstractmethod
    def example(self, batch: int) -> dict[str, torch.Tensor]:
        """Inputs of one forward pass over `batch` samples, for timing."""

    def calibration(self, samples: int, seed: int, labels: bool = False) -> list[Any]:
        """`samples` rows of the training split, drawn without replacement; with labels only if asked for."""
        rows = self.rows(labels)
        return [rows[i] for i in random.Random(seed).sample(range(len(rows)), min(samples, len(rows)))]

    def recovery(self, samples: int, seed: int, labels: bool = False) -> list[Any]:
        """Rows to retrain on: those of `calibration`, unless more is learned from them."""
        return self.calibration(samples, seed, labels)


class TrainedTask(Task):
    """A task whose dense model is trained from scratch, and small enough for the repository in some cases."""

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Everything but the seed that the dense model depends on: hash of the data, shape, hyper-parameters."""

    @abstractmethod
    def fresh(self, seed: int) -> nn.Module:
        """The dense model before training."""

    @abstractmethod
    def train(self, model: nn.Module, seed: int) -> None:
        """Train `model` in place on the training split."""

    def load(self, directory: Path) -> nn.Module:
        """The model that `save_pretrained` wrote, in fp32."""
        return type(self.fresh(0)).from_pretrained(directory, dtype=torch.float32)

    def dense(self, seed: int = 0, cache: Path = CACHE, baselines: Path = BASELINES) -> Dense:
        """The trained model of this seed: kept in `baselines`, from `cache`, or trained now and put into `cache`."""
        key = self._key(seed)
        kept, cached = baselines / self.name / f"seed{seed}", cache / self.name / key
        for origin, folder in (("baselines", kept), ("cache", cached)):
            report = _read_report(folder)
            if report.get("key") == key:
                return Dense(self.load(folder).eval(), {**report, "origin": origin})
        cached.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cached.parent) as partial:
            model = self.fresh(seed)
            start, cpu = time.perf_counter(), time.process_time()
            self.train(model, seed)
            seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
            report = {
                "key": key,
                "metric": self.metric,
                "dev": self.evaluate(model, "dev"),
                "test": self.evaluate(model, "test"),
                "seconds": round(seconds, 1),
                "cpu_seconds": round(cpu, 1),
                "seed": seed,
                "settings": self.settings,
            }
            model.save_pretrained(partial)
            (Path(partial) / _REPORT).write_text(json.dumps(report, indent=2) + "\n")
            os.rename(partial, cached)
        return Dense(model.eval(), {**report, "origin": "trained"})

    def keep(self, seed: int = 0, cache: Path = CACHE, baselines: Path = BASELINES) -> Path:
        """Put the dense model of this seed into `baselines` in fp16, with what it then reaches.

        ValueError for a model that is too large for that.
        """
        found = self.dense(seed, cache, baselines)
        size = 2 * sum(p.numel() for p in found.model.parameters())
        if size > KEPT_BYTES:
            raise ValueError(f"{self.name}: {size / 1e6:.1f} MB in fp16, more than {KEPT_BYTES / 1e6:.0f} MB")
        folder = baselines / self.name / f"seed{seed}"
        found.model.half().save_pretrained(folder)
        model = self.load(folder).eval()
        report = {**found.report, "dev": self.evaluate(model, "dev"), "test": self.evaluate(model, "test")}
        del report["origin"]
        (folder / _REPORT).write_text(json.dumps(report, indent=2) + "\n")
        return folder

    def _key(self, seed: int) -> str:
        what = json.dumps([self.settings, seed], sort_keys=True)
        return hashlib.sha256(what.encode()).hexdigest()[:16]


def _read_report(folder: Path) -> dict[str, Any]:
    path = folder / _REPORT
    return json.loads(path.read_text()) if path.exists() else {}


def task_names() -> list[str]:
    """Names of the tasks that there are."""
    return sorted(m.name for m in pkgutil.iter_modules([str(FOLDER)]) if (FOLDER / m.name / "task.py").exists())


def find(name: str) -> Task:
    """The task called `name`, with its data. Raises DataError when that is not here."""
    return importlib.import_module(f"benchmarks.tasks.{name}.task").TASK()
