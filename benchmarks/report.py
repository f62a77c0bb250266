"""Write the measured part of `docs/results.md` and its plots from the CSV files of `benchmarks/results/`.

    python -m benchmarks.report

Only what stands between the two marker lines is replaced; notes around them are kept.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.rows import Row, format_case, mean_std, read_rows, table
from benchmarks.tasks import report as tasks
from benchmarks.tasks.debian_sections import report as debian_sections
from benchmarks.tasks.results import FILE, TaskRow
from benchmarks.tasks.results import read as read_tasks

ROOT = Path(__file__).resolve().parents[1]
BEGIN = "<!-- begin: written by `python -m benchmarks.report` from benchmarks/results/*.csv; do not edit -->"
END = "<!-- end -->"
HEAD = "# Results\n\nEvery number below was measured, and stands in a row of `benchmarks/results/`.\n"

Section = Callable[[Sequence[Row], Path], list[str]]


def plain_section(rows: Sequence[Row], plots: Path) -> list[str]:
    """A table for each metric: cases down, providers across; seeds are averaged."""
    lines = []
    for metric in dict.fromkeys(row.metric for row in rows):
        own = [row for row in rows if row.metric == metric]
        providers = list(dict.fromkeys(row.provider for row in own))
        cells: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for row in own:
            case = format_case({key: value for key, value in row.case.items() if key != "seed"})
            cells[case][row.provider].append(row.value)
        body = [
            [case, *(mean_std(line[p], ".4g") if p in line else "" for p in providers)] for case, line in cells.items()
        ]
        lines += [f"`{metric}`:", "", *table(["case", *providers], body), ""]
    return lines


# Benchmarks whose rows deserve more than the plain tables.
SECTIONS: dict[str, Section] = {debian_sections.BENCHMARK: debian_sections.section}


def render(rows: Sequence[Row], plots: Path, task_rows: Sequence[TaskRow] = ()) -> str:
    """The measured part: a section for each benchmark, in it a part for each device and its versions; then tasks."""
    lines = []
    for benchmark in sorted({row.benchmark for row in rows}):
        lines += [f"## {benchmark}", ""]
        places: dict[tuple[str, str, str, str], list[Row]] = defaultdict(list)
        for row in rows:
            if row.benchmark == benchmark:
                places[row.device, row.torch, row.triton, row.python].append(row)
        for (device, torch, triton, python), own in sorted(places.items()):
            commits = ", ".join(f"`{commit}`" for commit in dict.fromkeys(row.commit for row in own))
            dates = sorted({row.date for row in own})
            days = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
            lines += [f"**{device}**, torch {torch}, Triton {triton}, Python {python}; {days}, commit {commits}", ""]
            lines += SECTIONS.get(benchmark, plain_section)(own, plots)
    return "\n".join([*lines, *tasks.section(task_rows, plots)]).rstrip() + "\n"


def replace_measured_part(old: str, measured: str) -> str:
    """`old` with its part between the markers replaced; a page without markers is started anew."""
    if BEGIN not in old:
        old = f"{HEAD}\n{BEGIN}\n{END}\n"
    before, _, rest = old.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"the line {END!r} is missing behind {BEGIN!r}")
    return f"{before}{BEGIN}\n\n{measured}\n{END}{after}"


def write(results: Path, docs: Path) -> None:
    """Update `docs/results.md` and `docs/plots/*.png`; ValueError without rows or with broken markers in the page."""
    rows, task_rows = read_rows(results), read_tasks(results / FILE.name)
    if not (rows or task_rows):
        raise ValueError(f"{results}: no CSV files with rows")
    page = docs / "results.md"
    old = page.read_text(encoding="utf-8") if page.exists() else ""
    measured = render(rows, docs / "plots", task_rows)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(replace_measured_part(old, measured), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    args = parser.parse_args()
    try:
        write(args.results, args.docs)
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
