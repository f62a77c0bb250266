"""Rows of `benchmarks/results/tasks.csv`: one pruned model each."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

FILE = Path("benchmarks/results/tasks.csv")
# Runs that agree in these are one: the newest row stands.
_KEY = (
    *("device", "torch", "transformers", "python", "task", "model", "recipe", "settings"),
    *("resource", "budget", "samples", "recovery", "seed"),
)


@dataclass(frozen=True)
class TaskRow:
    """One run. Empty cells are None.

    Where it ran: `date`, `commit`, `device`, `torch`, `transformers`, `python`. What ran: `task`, the key `model` of
    the dense model trained from `dense_seed`, `recipe` with `settings`, the share `budget` of `resource` asked for,
    calibration `samples`, the `recovery`, `seed`. What came out: the share `achieved`; the `metric` of the `dense`, the
    `pruned` and the `recovered` model; parameters of the whole models, FLOPs of their prunable blocks; milliseconds of
    one forward pass over `batch` samples, timed in turns. `seconds` and `peak_mib` hold `stage=value` words. A run of
    another package that came to nothing has none of these figures, but the reason, `failure`.
    """

    date: str
    commit: str
    device: str
    torch: str
    transformers: str
    python: str
    task: str
    model: str
    dense_seed: int
    recipe: str
    settings: str
    resource: str
    budget: float
    samples: int
    recovery: str
    seed: int
    metric: str
    dense: float
    dense_params: int
    batch: int
    achieved: float | None = None
    pruned: float | None = None
    recovered: float | None = None
    params: int | None = None
    dense_flops: float | None = None
    flops: float | None = None
    dense_ms: float | None = None
    pruned_ms: float | None = None
    seconds: str = ""
    peak_mib: str = ""
    failure: str = ""

    @property
    def stage_seconds(self) -> dict[str, float]:
        """Wall seconds by stage; retraining is the stage `recover`."""
        return {name: float(value) for name, _, value in (word.partition("=") for word in self.seconds.split())}

    @property
    def key(self) -> tuple[object, ...]:
        return tuple(getattr(self, name) for name in _KEY)


def words(values: Mapping[str, object]) -> str:
    """`a=1 b=2`; floats with four digits."""
    shown = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in values.items()}
    return " ".join(f"{key}={value}" for key, value in shown.items())


def append(row: TaskRow, path: Path) -> None:
    """Add `row` at the end of the file, which is made if it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = not path.exists()
    cells = {key: f"{v:.6g}" if isinstance(v, float) else "" if v is None else v for key, v in asdict(row).items()}
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(cells), lineterminator="\n")
        if fresh:
            writer.writeheader()
        writer.writerow(cells)


def read(path: Path) -> list[TaskRow]:
    """The rows of the file, of equal runs the newest; none if there is no file. ValueError for other columns."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        lines, columns = list(reader), reader.fieldnames
    if columns != [field.name for field in fields(TaskRow)]:
        raise ValueError(f"{path}: no table of tasks: its columns are {', '.join(columns or ())[:80]}")
    rows = [TaskRow(**{f.name: _value(str(f.type), line[f.name]) for f in fields(TaskRow)}) for line in lines]
    return list({row.key: row for row in rows}.values())


def _value(kind: str, text: str) -> object:
    if kind.endswith(" | None") and not text:
        return None
    return {"int": int, "float": float, "str": str}[kind.removesuffix(" | None")](text)
