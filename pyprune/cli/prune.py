"""`pyprune prune`: the main job."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from pyprune.cli import options as opt


def prune(
    model: opt.Model,
    out: Annotated[
        Path | None, typer.Option(help="Directory of the pruned checkpoint. Default: MODEL's last name with -pruned.")
    ] = None,
    flops: opt.Flops = None,
    params: opt.Params = None,
    plan: Annotated[Path | None, typer.Option(help="Apply this plan file instead of scoring and searching.")] = None,
    data: opt.Data = None,
    samples: opt.SamplesOption = 512,
    length: opt.Length = None,
    floor: opt.Floor = 0,
    keep: opt.Keep = None,
    axes: opt.Axes = None,
    multiple_of: opt.MultipleOf = 1,
    deploy: opt.Deploy = "layers",
    recipe: opt.RecipeOption = "surgeon",
    criterion: opt.Criterion = None,
    tuning: opt.Tuning = None,
    seed: opt.Seed = 0,
    device: opt.Device = "auto",
    dtype: opt.Dtype = None,
    score_dtype: opt.ScoreDtype = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the output directory when it is not empty.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the stage results of an interrupted run.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Score and plan, explain the plan, write nothing.")
    ] = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="Also measure the published pipeline stage by stage at the same budget.")
    ] = False,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Prune MODEL to a budget (default: 60 % of its FLOPs) on unlabelled data, save it, and measure the result.

    Exits with 1 when the masked, the sliced and the reloaded model do not agree.
    """
    import pyprune
    from pyprune.report.prune import compare_stages, measure, table, write

    opt.hush_transformers()

    budget = opt.budget(flops, params)
    if plan is None and budget is None:
        budget = {"flops": "60%"}
    settings = opt.settings(criterion=criterion, tuning=tuning, score_dtype=score_dtype)
    # Made absolute, because `.` has no name; of a hub id the last part stays too.
    out = out or Path(f"{os.path.basename(os.path.abspath(model))}-pruned")
    silent = quiet or as_json
    result = pyprune.prune(
        model,
        budget,
        data,
        recipe=recipe,
        plan=plan,
        out=out,
        samples=samples,
        length=length,
        **opt.bounds(floor, keep, axes, multiple_of, deploy),
        seed=seed,
        device=device,
        dtype=dtype,
        overwrite=overwrite,
        resume=resume,
        dry_run=dry_run,
        quiet=silent,
        **settings,
    )
    if dry_run:
        if as_json:
            print(json.dumps({"length": result.plan.length, "kept": result.plan.counts, "meta": result.plan.meta}))
        elif not quiet:
            print(result.plan.explain(result.anatomy), *(f"note: {notice}" for notice in result.notices), sep="\n")
        return
    others = compare_stages(result, seed) if compare else {}
    report = measure(result, out, others)
    write(report, out)
    if as_json or not quiet:
        print(json.dumps(report) if as_json else table(report))
    failed = [check for check in report["checks"] if not check["equal"]]
    for check in failed if quiet else ():
        print(f"pyprune: {check['name']}: differs by {check['difference']:.2e}", file=sys.stderr)
    if failed:
        sys.exit(1)
