"""The accuracy table and plot of `docs/results.md`, from rows that `accuracy.py` wrote."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from benchmarks.rows import Row, mean_std, std, table
from benchmarks.tasks.debian_sections.accuracy import BENCHMARK, METHODS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["BENCHMARK", "section"]

_ORDER = {name: place for place, name in enumerate(dict.fromkeys(m.name for m in METHODS))}
_COTANGENTS = {"none": "not used", "labels": "labels", "sampled": "none (sampled labels)"}


def section(rows: Sequence[Row], plots: Path) -> list[str]:
    """Markdown lines: for every data set and model a table of mean ± standard deviation over seeds, and its plot."""
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.case["data"], row.case["model"]].append(row)
    lines = []
    for (data, model), own in sorted(groups.items()):
        dense = [row.value for row in own if row.provider == "dense"]
        cells = _cells([row for row in own if "flops" in row.case])
        plot = plots / _slug(f"debian_sections {data} {model} {own[0].device} torch {own[0].torch}.png")
        _plot(cells, dense, plot)
        lines += [
            f"Data `{data}`, fine-tuned model `{model}`: test accuracy in %, mean ± standard deviation over seeds. "
            + (f"Dense model: {100 * dense[0]:.2f}." if dense else ""),
            "",
            *_table(cells),
            "",
            f"![Test accuracy against FLOPs](plots/{plot.name})",
            "",
        ]
    return lines


def _slug(text: str) -> str:
    return re.sub(r"[^\w.]+", "_", text)


Cells = dict[tuple[str, str], dict[float, list[float]]]


def _cells(rows: Sequence[Row]) -> Cells:
    """Accuracies of all seeds by (method, cotangent), then by share of FLOPs; methods in the order of `METHODS`."""
    cells: Cells = defaultdict(lambda: defaultdict(list))
    for row in rows:
        cells[row.provider, row.case["cotangent"]][float(row.case["flops"])].append(row.value)
    return dict(sorted(cells.items(), key=lambda item: (list(_COTANGENTS).index(item[0][1]), _ORDER[item[0][0]])))


def _table(cells: Cells) -> list[str]:
    budgets = sorted({budget for line in cells.values() for budget in line}, reverse=True)
    head = ["method", "labels used", *(f"{budget:.0%} FLOPs" for budget in budgets), "seeds"]
    body = []
    for (method, cotangent), line in cells.items():
        seeds = sorted({len(values) for values in line.values()})
        shown = [mean_std([100 * v for v in line[b]]) if b in line else "" for b in budgets]
        body.append([method, _COTANGENTS[cotangent], *shown, "-".join(map(str, seeds))])
    return table(head, body)


def _plot(cells: Cells, dense: Sequence[float], path: Path) -> None:
    """All methods on the left, those that read data on the right at a scale that tells them apart."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6), layout="constrained")
    whole, close = figure.subplots(1, 2)
    _draw(whole, cells, dense)
    _draw(close, {key: line for key, line in cells.items() if key[1] != "none"}, dense)
    whole.set_ylabel("test accuracy, %")
    figure.legend(*whole.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, metadata={"Software": None})


def _draw(axes: Axes, cells: Cells, dense: Sequence[float]) -> None:
    for (method, cotangent), line in cells.items():
        points = sorted(line.items())
        axes.errorbar(
            [100 * budget for budget, _ in points],
            [100 * fmean(values) for _, values in points],
            [100 * std(values) for _, values in points],
            linestyle={"labels": "--", "sampled": "-", "none": ":"}[cotangent],
            color=f"C{_ORDER[method]}",
            marker=".",
            capsize=2,
            label=method if cotangent == "none" else f"{method} ({cotangent})",
        )
    if dense:
        axes.axhline(100 * dense[0], color="black", linewidth=0.8, label="dense")
    axes.set_xlabel("FLOPs of the prunable blocks, % of the dense model")
    axes.grid(alpha=0.3)
