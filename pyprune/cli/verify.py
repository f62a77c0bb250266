"""`pyprune verify`: masked = sliced = reloaded, or a non-zero exit."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from pyprune.cli import options as opt


def verify(
    model: opt.Model,
    keep: Annotated[float, typer.Option(help="Share of units that the random plan keeps (dense models).")] = 0.5,
    axes: Annotated[
        str | None, typer.Option(help="Axes to prune besides those of blocks: layers, hidden, vocab (dense models).")
    ] = None,
    seed: opt.Seed = 0,
    device: opt.Device = "auto",
    dtype: opt.Dtype = None,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Prove that MODEL survives pruning exactly (random plan over every axis that it has), or that a pruned checkpoint
    gives its stored outputs.

    Exits with 1 when outputs differ.
    """
    from pyprune.api import pick_device
    from pyprune.core.errors import InputError
    from pyprune.models.adapter import asked_axes
    from pyprune.models.loading import load
    from pyprune.verification import REFERENCE_FILE, found_line, verify_checkpoint, verify_model

    opt.hush_transformers()
    if (Path(model) / REFERENCE_FILE).is_file():
        if dtype is not None:
            raise InputError(f"dtype={dtype!r}: a pruned checkpoint is replayed in the dtype that it is stored in")
        checks = verify_checkpoint(model, pick_device(device))
    else:
        loaded, _ = load(model, dtype, pick_device(device))
        if not quiet and not as_json and (found := found_line(loaded)):
            print(found)
        checks = verify_model(loaded, keep=keep, seed=seed, axes=opt.names(axes))
        if not quiet and not as_json:
            print("axes:", ", ".join(checks[0].axes))
            refusals = (
                [refusal for refusal in asked_axes(loaded, together=True).values() if refusal] if axes is None else []
            )
            print(*(f"not tried: {refusal}\n" for refusal in refusals), sep="", end="")
    if as_json:
        print(json.dumps([{**asdict(check), "equal": check.equal} for check in checks]))
    elif not quiet:
        print(*checks, sep="\n")
    if not all(check.equal for check in checks):
        sys.exit(1)
