"""Rows of the result files, and how the reports show numbers."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pyprune.bench.results import read


@dataclass(frozen=True)
class Row:
    """One measured value. `case` holds the `key=value` words of its column; other words stand under `case[""]`."""

    date: str
    commit: str
    device: str
    torch: str
    triton: str
    python: str
    benchmark: str
    case: dict[str, str]
    provider: str
    metric: str
    value: float


def read_rows(results: Path) -> list[Row]:
    """All rows of all CSV files of a folder but `tasks.csv`, in the order of file names and lines."""
    rows = []
    for path in sorted(path for path in results.glob("*.csv") if path.name != "tasks.csv"):
        for line in read(path):
            rows.append(Row(**{**line, "case": parse_case(line["case"]), "value": float(line["value"])}))
    return rows


def parse_case(text: str) -> dict[str, str]:
    """`32x128 fp32 seed=0` is `{"": "32x128 fp32", "seed": "0"}`."""
    words = text.split()
    case = dict(word.split("=", 1) for word in words if "=" in word)
    rest = " ".join(word for word in words if "=" not in word)
    return {"": rest, **case} if rest else case


def format_case(case: dict[str, str]) -> str:
    return " ".join(f"{key}={value}" if key else value for key, value in case.items())


def std(values: Sequence[float]) -> float:
    """Sample standard deviation; 0 for a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def mean_std(values: Sequence[float], form: str = ".2f") -> str:
    """`81.20 ± 0.31`, or the value alone when there is only one; `form` is a format specification."""
    mean = f"{statistics.fmean(values):{form}}"
    return f"{mean} ± {std(values):{form}}" if len(values) > 1 else mean


def table(head: Sequence[str], body: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    rows = [head, ["---"] * len(head), *body]
    return ["| " + " | ".join(row) + " |" for row in rows]
