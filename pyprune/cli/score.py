"""`pyprune score`: what every unit of a model is worth, to plan with at any budget."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pyprune.cli import options as opt


def score(
    model: opt.Model,
    out: Annotated[Path, typer.Option(help="File to write the scores to (.safetensors).")],
    data: opt.Data = None,
    samples: opt.SamplesOption = 512,
    recipe: opt.RecipeOption = "surgeon",
    criterion: opt.Criterion = None,
    axes: opt.Axes = None,
    seed: opt.Seed = 0,
    device: opt.Device = "auto",
    dtype: opt.Dtype = None,
    score_dtype: opt.ScoreDtype = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file when it exists.")] = False,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Score all units of MODEL on unlabelled data and write the scores to a file."""
    import pyprune

    opt.hush_transformers()
    opt.check_file(out, overwrite)
    scores = pyprune.score(
        model,
        data,
        recipe=recipe,
        samples=samples,
        axes=opt.names(axes),
        seed=seed,
        device=device,
        dtype=dtype,
        quiet=quiet or as_json,
        **opt.settings(criterion=criterion, score_dtype=score_dtype),
    )
    scores.save(out)
    if as_json:
        print(
            json.dumps({"scores": str(out), **scores.meta, "groups": {n: v.numel() for n, v in scores.values.items()}})
        )
    elif not quiet:
        print(f"{sum(v.numel() for v in scores.values.values()):,} units scored ({scores.meta}); written to {out}")
        print(*(f"note: {notice}\n" for notice in scores.meta.get("notices", [])), sep="", end="")
        if scores.meta["truncated"]:
            print(f"note: {scores.meta['truncated']} samples were longer than the model takes and were cut")
