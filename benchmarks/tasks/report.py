"""The tables of `docs/results.md` from the rows of `benchmarks/results/tasks.csv`: one for each task."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from benchmarks.rows import mean_std, std, table
from benchmarks.tasks.results import TaskRow

_PERCENT = ("accuracy", "exact match")


def section(rows: Sequence[TaskRow], plots: Path) -> list[str]:
    """Markdown lines, and a plot for each table; seeds are averaged, ± is their standard deviation."""
    lines: list[str] = []
    for task in sorted({row.task for row in rows}):
        lines += [f"## {task}: pruned by `benchmarks.tasks.run`", ""]
        places: dict[tuple[str, ...], list[TaskRow]] = defaultdict(list)
        for row in rows:
            if row.task == task:
                places[row.device, row.torch, row.transformers, row.python, row.model].append(row)
        for (device, torch, transformers, python, model), own in sorted(places.items()):
            commits = ", ".join(f"`{commit}`" for commit in dict.fromkeys(row.commit for row in own))
            lines += [
                f"**{device}**, torch {torch}, transformers {transformers}, Python {python}; commit {commits}. "
                f"Dense model `{model}`: {own[0].metric} {_shown(own[:1], 'dense')}, "
                f"{own[0].dense_params / 1e6:.2f} M parameters.",
                "",
                *_table(own),
                "",
            ]
            if not (reached := [row for row in own if not row.failure]):
                continue
            plot = plots / re.sub(r"[^\w.]+", "_", f"{task} {model} {device} torch {torch}.png")
            _plot(reached, plot)
            lines += [f"![{own[0].metric} against FLOPs](plots/{plot.name})", ""]
    return lines


def _table(rows: Sequence[TaskRow]) -> list[str]:
    groups: dict[tuple[str, str, str, float, str], list[TaskRow]] = defaultdict(list)
    for row in rows:
        groups[row.recipe, row.settings, row.resource, row.budget, row.recovery].append(row)
    figures = "achieved", "pruned", "recovered", "parameters, M", "times as fast", "s to prune", "s to retrain", "seeds"
    head = ["recipe", "recovery", "budget", *figures]
    body = []
    for (recipe, settings, resource, budget, recovery), own in sorted(
        groups.items(), key=lambda item: (item[0][2], -item[0][3], *item[0][:2], item[0][4])
    ):
        run, failures = [row for row in own if not row.failure], [row.failure for row in own if row.failure]
        cells = [
            f"{recipe} {settings}".strip(),
            recovery,
            f"{budget:.0%} {resource}",
            *(_figures(run) if run else [""] * 7),
        ]
        seeds = f"{len(failures)} of {len(own)} failed: {failures[0]}" if failures else str(len(own))
        body.append([*cells, seeds.replace("|", "\\|")])
    return table(head, body)


def _figures(rows: Sequence[TaskRow]) -> list[str]:
    """What the runs of one setting reached, means over seeds."""
    retraining = fmean(row.stage_seconds.get("recover", 0.0) for row in rows)
    return [
        f"{fmean(row.achieved for row in rows):.1%}",
        _shown(rows, "pruned"),
        "" if rows[0].recovered is None else _shown(rows, "recovered"),
        f"{fmean(row.params for row in rows) / 1e6:.2f}",
        f"{fmean(row.dense_ms / row.pruned_ms for row in rows):.2f}",
        f"{fmean(sum(row.stage_seconds.values()) for row in rows) - retraining:.0f}",
        "" if rows[0].recovered is None else f"{retraining:.0f}",
    ]


def _plot(rows: Sequence[TaskRow], path: Path) -> None:
    """What the final models reach against the FLOPs that stay, a line a recipe; means and deviations over seeds.

    Ablations, of fewer budgets than others, are in the table alone.
    """
    from cycler import cycler
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    scale = 100 if rows[0].metric in _PERCENT else 1
    lines: Mapping[str, dict[float, list[TaskRow]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        recovery = "" if row.recovery == "none" else f", {row.recovery.split()[0].removeprefix('method=')}"
        share = "" if row.resource == "flops" else f", {row.resource}"
        lines[f"{row.recipe} {row.settings}".strip() + recovery + share][row.budget].append(row)
    most = max(len(points) for points in lines.values())
    lines = {label: points for label, points in lines.items() if 2 * len(points) > most}
    figure = Figure(figsize=(11, 5), layout="constrained")
    axes = figure.subplots()
    axes.set_prop_cycle(cycler(linestyle=["-", "--", ":"]) * cycler(color=colormaps["tab10"].colors))
    for label, points in sorted(lines.items()):
        own = [points[budget] for budget in sorted(points)]
        reached = [[scale * (r.pruned if r.recovered is None else r.recovered) for r in seeds] for seeds in own]
        shares = [100 * fmean(r.flops / r.dense_flops for r in seeds) for seeds in own]
        axes.errorbar(shares, list(map(fmean, reached)), list(map(std, reached)), marker=".", capsize=2, label=label)
    axes.axhline(scale * rows[0].dense, color="black", linewidth=0.8, label="dense")
    axes.set_xlabel("FLOPs of the prunable blocks, % of the dense model")
    axes.set_ylabel(rows[0].metric + (", %" if scale == 100 else ""))
    if rows[0].metric == "perplexity":
        axes.set_yscale("log")
    axes.grid(alpha=0.3)
    figure.legend(fontsize="small", loc="outside right upper")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, metadata={"Software": None})


def _shown(rows: Sequence[TaskRow], which: str) -> str:
    """Shares of right answers in %, anything else as it is."""
    scale = 100 if rows[0].metric in _PERCENT else 1
    return mean_std([scale * getattr(row, which) for row in rows])
