"""Measured kernels as tables, and on a roofline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyprune.bench.kernels import OWN, Measured


def table(found: Measured) -> Any:
    """A rich table of one case: time, rate, share of the ceiling and ratio of every provider, the fastest marked."""
    from rich.table import Table

    unit, _ = found.rate(OWN)
    title = f"{found.op} {found.shape} {found.dtype}"
    shown = Table("provider", "ms", unit, "of the ceiling", "ratio", "", title=title, title_justify="left")
    own = found.timings[OWN].median
    for name, timing in found.timings.items():
        mark = "bounds the time" if name in found.yardsticks else "fastest" if name == found.winner else ""
        shown.add_row(
            f"{name} ({found.backend})" if name == OWN else name,
            f"{timing.median * 1e3:.3f}",
            f"{found.rate(name)[1]:.2f}",
            f"{found.share(name):.0%}",
            f"{timing.median / own:.2f}",
            mark,
        )
    return shown


def as_json(found: Measured) -> dict[str, Any]:
    """One case as JSON-encodable data."""
    unit, _ = found.rate(OWN)
    providers = {
        name: {
            "ms": timing.median * 1e3,
            "p20_ms": timing.p20 * 1e3,
            "p80_ms": timing.p80 * 1e3,
            unit: found.rate(name)[1],
            "share_of_ceiling": found.share(name),
            "yardstick": name in found.yardsticks,
        }
        for name, timing in found.timings.items()
    }
    return {
        "op": found.op,
        "shape": found.shape,
        "dtype": found.dtype,
        "backend": found.backend,
        "bytes": found.bytes_moved,
        "flops": found.flops,
        "ceiling_gb_s": found.ceilings.bytes_s / 1e9,
        "ceiling_tflop_s": found.ceilings.flops_s / 1e12,
        "fastest": found.winner,
        "providers": providers,
    }


def summary(found: Sequence[Measured]) -> list[str]:
    """One line an op: how often each provider was the fastest."""
    lines = []
    for op in dict.fromkeys(m.op for m in found):
        wins: dict[str, int] = {}
        for m in found:
            if m.op == op:
                wins[m.winner] = wins.get(m.winner, 0) + 1
        ranked = sorted(wins.items(), key=lambda item: -item[1])
        lines.append(f"{op}: fastest {', '.join(f'{name} in {n}' for name, n in ranked)} of {sum(wins.values())} cases")
    return lines


def roofline(found: Sequence[Measured], path: Path, device: str) -> None:
    """A PNG: FLOP/s over FLOPs a byte, the measured ceilings as the roof, a point for pyprune in every case.

    Cases without FLOPs (copies) have no place on a roofline and are left out.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5.5))
    drawn = [m for m in found if m.flops]
    if drawn:
        intensities = [m.flops / m.bytes_moved for m in drawn]
        low, high = min(intensities) / 2, max(*intensities, 1.0) * 4
        for dtype, style in (("fp32", "-"), ("bf16", "--")):
            limits = next((m.ceilings for m in drawn if m.dtype == dtype), None)
            if limits is None:
                continue
            ridge = limits.flops_s / limits.bytes_s
            xs = [low, ridge, max(high, ridge * 2)]
            axes.plot(xs, [min(x * limits.bytes_s, limits.flops_s) for x in xs], style, color="0.3", lw=1, label=dtype)
    for i, op in enumerate(dict.fromkeys(m.op for m in drawn)):
        for dtype, marker in (("fp32", "o"), ("bf16", "s")):
            points = [m for m in drawn if (m.op, m.dtype) == (op, dtype)]
            axes.scatter(
                [m.flops / m.bytes_moved for m in points],
                [m.flops / m.timings[OWN].median for m in points],
                marker=marker,
                s=30,
                color=f"C{i % 10}",
                label=op if points and dtype == points[0].dtype == "fp32" else None,
            )
    axes.set(xscale="log", yscale="log", xlabel="FLOPs a byte", ylabel="FLOP/s", title=device)
    axes.grid(True, which="major", lw=0.3)
    if drawn:
        axes.legend(loc="upper left", fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
