"""Options that several verbs share, and how they become arguments of the public functions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

Model = Annotated[
    str, typer.Argument(help="Model directory, hub id, or the id of a model that an installed package ships.")
]
Flops = Annotated[
    str | None, typer.Option(help="FLOPs that may stay in the prunable blocks: 0.6, 60% or an amount such as 1.2G.")
]
Params = Annotated[
    str | None, typer.Option(help="Weights that may stay in the prunable blocks: 0.6, 60% or an amount such as 7M.")
]
Data = Annotated[
    Path | None,
    typer.Option(
        help="Text (passages split by blank lines), a folder of images, or .jsonl with text, image, or what else the "
        "model takes. Default, for models that read text: English prose that Python ships."
    ),
]
SamplesOption = Annotated[int, typer.Option(help="Calibration samples; as many more are held out to measure fidelity.")]
Length = Annotated[
    float | None, typer.Option(help="Sequence length at which FLOPs count. Default: the mean of the calibration data.")
]
RecipeOption = Annotated[
    str, typer.Option(help="surgeon, or a published system to follow: kwon, kprune, flap, lfpr, llm_pruner, optin.")
]
Criterion = Annotated[
    str | None,
    typer.Option(
        help="With a published system, what a unit is worth: fisher, fisher_batch, flap, wanda_sp, minitron, "
        "taylor, taylor_abs, taylor_sq, taylor_mix, magnitude, random. Default: the system's own."
    ),
]
Tuning = Annotated[
    str | None,
    typer.Option(help="How accuracy is recovered: refit or none; with a published system bias, with kwon mask too."),
]
Floor = Annotated[int, typer.Option(help="Units that stay in every block at least.")]
Keep = Annotated[
    list[str] | None,
    typer.Option(help="Pattern of blocks that stay whole, 'encoder.layer.0.*' for example; may be given again."),
]
Axes = Annotated[
    str | None,
    typer.Option(
        help="The only axes that lose units, separated by commas: heads,neurons. Default: all of blocks. "
        "query_heads, qk_dims, vo_dims, layers, hidden, tokens and vocab have to be named."
    ),
]
MultipleOf = Annotated[
    int, typer.Option(help="Round widths so that channels are multiples of this, 64 for example; or dense.")
]
Deploy = Annotated[
    str,
    typer.Option(help="layers: every layer its own shape; uniform: one shape for all, which loads without pyprune."),
]
Seed = Annotated[int, typer.Option(help="Seed of the data split and of every random draw.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...; auto takes the GPU where there is one.")]
Dtype = Annotated[str | None, typer.Option(help="Dtype to load, compute and save in. Default: the checkpoint's own.")]
ScoreDtype = Annotated[
    str | None, typer.Option(help="Dtype of the scoring pass alone, bfloat16 for example. Default: the model's.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout instead of tables.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars and no tables.")]


def budget(flops: str | None, params: str | None) -> dict[str, str] | None:
    """The budget mapping of `--flops` and `--params`, None when neither is given."""
    return {k: v for k, v in (("flops", flops), ("params", params)) if v is not None} or None


def names(given: str | None) -> list[str] | None:
    """The names in a list with commas; None when none was given."""
    return None if given is None else [name.strip() for name in given.split(",")]


def bounds(floor: int, keep: list[str] | None, axes: str | None, multiple_of: int, deploy: str) -> dict[str, Any]:
    """The arguments of `pyprune.plan` that bound what a plan may take away."""
    return {"floor": floor, "keep": keep or (), "axes": names(axes), "multiple_of": multiple_of, "deploy": deploy}


def settings(**given: Any) -> dict[str, Any]:
    """The recipe settings that were given on the command line."""
    return {name: value for name, value in given.items() if value is not None}


def check_file(out: Path, overwrite: bool) -> None:
    """Raise InputError unless the file `out` can be written."""
    from pyprune.formats.exported import check_file

    check_file(out, overwrite)


def hush_transformers() -> None:
    """No progress bars of transformers beside our own, for loading and writing a file."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
