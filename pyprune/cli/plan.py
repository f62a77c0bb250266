"""`pyprune plan`: which units stay under a budget; cheap, from scores on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pyprune.cli import options as opt


def plan(
    model: opt.Model,
    scores: Annotated[Path, typer.Option(help="Scores file of `pyprune score`.")],
    out: Annotated[
        Path | None, typer.Option(help="Plan file to write (.json): read it, edit it, give it to prune --plan.")
    ] = None,
    flops: opt.Flops = None,
    params: opt.Params = None,
    length: opt.Length = None,
    recipe: opt.RecipeOption = "surgeon",
    floor: opt.Floor = 0,
    keep: opt.Keep = None,
    axes: opt.Axes = None,
    multiple_of: opt.MultipleOf = 1,
    deploy: opt.Deploy = "layers",
    tuning: opt.Tuning = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file when it exists.")] = False,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Plan MODEL at a budget from scores, and explain the plan."""
    import pyprune
    from pyprune.core.errors import InputError
    from pyprune.core.scores import Scores
    from pyprune.models.adapter import adapter_for
    from pyprune.models.loading import load

    opt.hush_transformers()
    if out is not None:
        opt.check_file(out, overwrite)
    budget = opt.budget(flops, params)
    if budget is None:
        raise InputError("give --flops, --params or both")
    loaded, tokenizer = load(model)
    made = pyprune.plan(
        loaded,
        Scores.load(scores),
        budget,
        recipe=recipe,
        length=length,
        tokenizer=tokenizer,
        **opt.bounds(floor, keep, axes, multiple_of, deploy),
        **opt.settings(tuning=tuning),
    )
    if out is not None:
        made.save(out)
    if as_json:
        print(json.dumps({"length": made.length, "kept": made.counts, "meta": made.meta}))
    elif not quiet:
        print(made.explain(adapter_for(loaded).anatomy(loaded, made.axes)))
