"""The report of `pyprune prune`: size, FLOPs, latency, fidelity, seconds and memory of every stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

import pyprune
from pyprune.api import Result
from pyprune.bench.fidelity import fidelity
from pyprune.bench.latency import CASES, OTHER_BATCHES, Latency, latency
from pyprune.calibration import why_not_text
from pyprune.core.anatomy import Anatomy
from pyprune.core.batches import Samples
from pyprune.core.budget import Budget, Limit
from pyprune.core.layers import is_linear
from pyprune.core.storage import write_json
from pyprune.models.adapter import adapter_for
from pyprune.verification import verify_model

REPORT_FILE = "pyprune_report.json"

# Kwon et al. stage by stage, and their search with the stronger refit: name -> settings of the recipe.
_PUBLISHED = {
    "kwon: search": {"tuning": "none", "rearrange": False},
    "kwon: + rearrangement": {"tuning": "none", "rearrange": True},
    "kwon: + mask tuning": {"tuning": "mask", "rearrange": True},
    "kwon: search, refit": {"tuning": "refit", "rearrange": False},
    "kwon: + rearrangement, refit": {"tuning": "refit", "rearrange": True},
}


def compare_stages(result: Result, seed: int) -> dict[str, dict[str, float]]:
    """Held-out fidelity of the published pipeline, stage by stage, at the result's budget and on its data.

    Empty when the result came from a given plan (no budget is known), removes tokens, or nothing was held out.
    """
    if result.held_out is None or "vocab" in result.plan.axes or "budget" not in result.plan.meta:
        return {}
    limits = {resource: result.plan.cost(result.anatomy, resource) for resource in result.plan.meta["budget"]}
    budget = Budget(tuple(Limit(resource, amount, relative=False) for resource, amount in limits.items()))
    with result.stages.stage("compare: score"):
        scores = pyprune.score(result.dense, result.calibration, recipe="kwon", seed=seed, quiet=result.stages.quiet)
    found = {}
    for name, settings in _PUBLISHED.items():
        recipe = pyprune.Kwon(**settings)
        with result.stages.stage(name.replace("kwon: ", "compare: ")):
            plan = pyprune.plan(result.dense, scores, budget, recipe=recipe, length=result.plan.length)
            student = pyprune.apply(result.dense, plan)
            data = {"data": result.calibration, "quiet": result.stages.quiet}
            pyprune.tune(student, result.dense, plan, scores=scores, recipe=recipe, inplace=True, **data)
            found[name] = fidelity(result.dense, student, result.held_out).values
    return found


def measure(result: Result, out: Path | None, others: dict[str, dict[str, float]] | None = None) -> dict[str, Any]:
    """Everything the report says, as JSON-encodable data; latency is measured here, in turns, in this process."""
    assert result.pruned is not None, "a dry run has nothing to measure"
    dense, pruned, plan = result.dense, result.pruned, result.plan
    anatomy = result.anatomy
    with result.stages.stage("measure"):
        faithful = dict(others or {})
        # Bare models put out another width, and other tokens are no input.
        if result.held_out is not None and not {"hidden", "vocab"} & set(plan.axes):
            untuned = pyprune.apply(dense, plan)
            faithful["this plan, untuned"] = fidelity(dense, untuned, result.held_out).values
            if any(outcome.fitted for outcome in result.outcomes):
                faithful["this checkpoint"] = fidelity(dense, pruned, result.held_out).values
        latencies = _latencies(dense, pruned, result.calibration)
    with result.stages.stage("verify"):
        checks = verify_model(dense, plan, pruned)
    return {
        "out": None if out is None else str(out),
        "class": type(pruned).__name__,
        "samples": len(result.calibration),
        "held_out": 0 if result.held_out is None else len(result.held_out),
        "length": plan.length,
        "blocks": {
            "flops": [anatomy.flops(plan.length), plan.cost(anatomy, "flops")],
            "params": [anatomy.params(), plan.cost(anatomy, "params")],
        },
        "model": {
            "flops": [
                _model_flops(dense, adapter_for(dense).anatomy(dense), plan.length),
                _model_flops(pruned, adapter_for(pruned).anatomy(pruned), plan.length),
            ],
            "params": [sum(p.numel() for p in m.parameters()) for m in (dense, pruned)],
        },
        "latency_ms": [
            {"batch": x.batch, "length": x.length, "dense": x.dense_ms, "pruned": x.pruned_ms, "speedup": x.ratio}
            for x in latencies
        ],
        "fidelity": faithful,
        "kept": plan.counts,
        "not_tuned": {o.block: o.reason for o in result.outcomes if not o.fitted},
        "checks": [
            {"name": c.name, "difference": c.difference, "allowed": c.allowed, "equal": c.equal} for c in checks
        ],
        "stages": [
            {"name": s.name, "seconds": s.seconds, "host_mib": s.host_mib, "cuda_mib": s.cuda_mib}
            for s in result.stages.log
        ],
        "notices": result.notices,
    }


def _latencies(dense: nn.Module, pruned: nn.Module, samples: Samples) -> list[Latency]:
    if not samples.plain:
        return [latency(dense, pruned, batch, samples=samples) for batch in OTHER_BATCHES]
    cases = () if why_not_text(dense) else CASES  # pruned without that data went through it
    return [latency(dense, pruned, batch, length) for batch, length in cases]


def _model_flops(model: nn.Module, anatomy: Anatomy, length: float) -> float:
    """FLOPs of the whole model for one sequence: the blocks, and every other linear layer once a token.

    Poolers and task heads that read one token are counted at every token, an upper bound; embeddings and norms are not
    counted.
    """
    inside = {cut.module for block in anatomy.blocks for cut in block.cuts}
    others = sum(m.weight.numel() for name, m in model.named_modules() if is_linear(m) and name not in inside)
    return anatomy.flops(length) + 2 * length * others


def write(report: dict[str, Any], out: Path) -> None:
    """Store the report with the checkpoint, as `pyprune_report.json`."""
    write_json(out / REPORT_FILE, report)


def table(report: dict[str, Any]) -> str:
    """The report as text."""
    sections = [_sizes_and_speed(report), _fidelity(report), _stages(report), _remarks(report), _loading(report)]
    return "\n\n".join("\n".join(lines) for lines in sections if lines)


def _sizes_and_speed(report: dict[str, Any]) -> list[str]:
    lines = [f"{'':<26}{'dense':>14}{'pruned':>14}{'ratio':>9}"]

    def row(name: str, dense: float, pruned: float, form: str, remark: str = "") -> None:
        lines.append(f"{name:<26}{dense:>14{form}}{pruned:>14{form}}{pruned / dense:>9.3f}{remark}")

    for scope in ("blocks", "model"):
        row(f"parameters, {scope} (M)", *(n / 1e6 for n in report[scope]["params"]), ".3f")
        row(f"FLOPs, {scope} (G)", *(n / 1e9 for n in report[scope]["flops"]), ".4f")
    for x in report["latency_ms"]:
        remark = f"   {x['speedup']:.2f}x as fast"
        row(f"latency {x['batch']}x{x['length']} (ms)", x["dense"], x["pruned"], ".2f", remark)
    lines.append(
        f"FLOPs at {report['length']:.1f} tokens a sequence; blocks are what can be pruned; latency: medians, in turns."
    )
    slower = [x for x in report["latency_ms"] if x["speedup"] <= 1]
    return lines + [f"NOT FASTER at {x['batch']}x{x['length']}." for x in slower]


def _fidelity(report: dict[str, Any]) -> list[str]:
    if not report["fidelity"]:
        return []
    lines = [f"fidelity to the dense model on {report['held_out']} held-out samples"]
    for name, values in report["fidelity"].items():
        lines.append(f"  {name:<24}" + "  ".join(f"{k} {v:.4f}" for k, v in values.items()))
    return lines


def _stages(report: dict[str, Any]) -> list[str]:
    lines = [f"{'stage':<26}{'seconds':>10}{'peak MiB':>10}"]
    for s in report["stages"]:
        gpu = f"  GPU {s['cuda_mib']:.0f} MiB" if s["cuda_mib"] else ""
        lines.append(f"{s['name']:<26}{s['seconds']:>10.1f}{s['host_mib']:>10.0f}{gpu}")
    return lines


def _remarks(report: dict[str, Any]) -> list[str]:
    checks = [
        f"{c['name']}: max abs difference {c['difference']:.2e}, {'equal' if c['equal'] else 'DIFFERENT'}"
        for c in report["checks"]
    ]
    reasons: dict[str, list[str]] = {}
    for block, reason in report["not_tuned"].items():
        reasons.setdefault(reason, []).append(block)
    untuned = []
    for reason, blocks in reasons.items():
        which = blocks[0] if len(blocks) == 1 else f"{len(blocks)} of {len(report['kept'])} blocks"
        untuned.append(f"not tuned: {which}: {reason}")
    return checks + untuned + [f"note: {notice}" for notice in report["notices"]]


def _loading(report: dict[str, Any]) -> list[str]:
    if not report["out"]:
        return []
    return [
        "import pyprune; from transformers import " + report["class"],
        f"model = {report['class']}.from_pretrained({report['out']!r})",
    ]
