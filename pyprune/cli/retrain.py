"""`pyprune retrain`: a pruned checkpoint trained on what its dense model says of unlabelled data."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from pyprune.cli import options as opt


def retrain(
    pruned: Annotated[str, typer.Argument(help="Directory of the pruned checkpoint.")],
    dense: Annotated[str, typer.Argument(help="The dense model that it was made of: directory or hub id.")],
    out: Annotated[Path, typer.Option(help="Directory of the retrained checkpoint.")],
    data: opt.Data = None,
    samples: Annotated[int, typer.Option(help="Unlabelled samples to train on.")] = 4096,
    method: Annotated[
        str | None,
        typer.Option(help="rest (the default): masks, output heads, last layers; lora: adapters; full: all weights."),
    ] = None,
    targets: Annotated[
        str | None, typer.Option(help="soft (the default): the dense model's distributions; hard: its answers.")
    ] = None,
    features: Annotated[float | None, typer.Option(help="Weight of the distance between hidden states (0).")] = None,
    share: Annotated[float | None, typer.Option(help="Share of the samples; rest: by its schedule.")] = None,
    layers: Annotated[int | None, typer.Option(help="Last layers that rest trains; default: by its schedule.")] = None,
    break_point: Annotated[
        float | None, typer.Option(help="Size above which masks and heads suffice; default: it is searched.")
    ] = None,
    tolerance: Annotated[
        float | None, typer.Option(help="Agreement with the dense model that suffices (0.98).")
    ] = None,
    rank: Annotated[int | None, typer.Option(help="Of the adapters of lora (8).")] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the share of the samples (1).")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples a step (16).")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of weights (5e-5).")] = None,
    mask_learning_rate: Annotated[float | None, typer.Option(help="Of the masks of rest (1e-3).")] = None,
    schedule: Annotated[
        str | None, typer.Option(help="Of the learning rates: linear (the default: warm-up and decay) or constant.")
    ] = None,
    seed: opt.Seed = 0,
    device: opt.Device = "auto",
    dtype: opt.Dtype = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the output directory when it is not empty.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoints of an interrupted run.")] = False,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Train the checkpoint PRUNED on what the model DENSE says of unlabelled data, and write it to OUT.

    Exits with 1 when training had to stop; what is written then is its last good state.
    """
    from pyprune.retraining import retrain_checkpoint

    opt.hush_transformers()
    settings = opt.settings(
        method=method,
        targets=targets,
        features=features,
        share=share,
        layers=layers,
        break_point=break_point,
        tolerance=tolerance,
        rank=rank,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        mask_learning_rate=mask_learning_rate,
        schedule=schedule,
    )
    where = {"device": device, "dtype": dtype, "overwrite": overwrite, "resume": resume, "quiet": quiet or as_json}
    done = retrain_checkpoint(pruned, dense, out, data, samples=samples, seed=seed, **where, **settings)
    if as_json:
        print(json.dumps({"out": str(out), **asdict(done)}))
    elif not quiet:
        agreed = "" if done.agreement is None else f", {done.agreement:.1%} of held-out answers as the dense model's"
        trained = f"the last {done.layers} layers" if method in (None, "rest") else method
        print(f"{trained}: {done.steps} steps on {done.share:.0%} of the samples, loss {done.loss:.4g}{agreed}")
        print(f"written to {out}")
    if done.stopped:
        print(f"pyprune: {done.stopped}", file=sys.stderr)
        sys.exit(1)
