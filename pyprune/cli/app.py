"""The command's frame: its verbs, and errors as one line with exit code 2."""

from __future__ import annotations

import os
import signal
import sys

import typer

from pyprune.cli import bench, export, info, plan, prune, retrain, score, verify
from pyprune.core.errors import PyPruneError

_INTERRUPTED = 130  # what typer makes of KeyboardInterrupt

app = typer.Typer(
    name="pyprune",
    help="Make transformers smaller and faster: structured pruning into dense models that plain transformers loads.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _verb in (
    prune.prune,
    retrain.retrain,
    score.score,
    plan.plan,
    verify.verify,
    export.export,
    bench.bench,
    info.info,
):
    app.command()(_verb)


def main() -> None:
    """Entry point of the console script."""
    # Warnings of libraries would bury the one line that matters; their errors are not silenced.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    signal.signal(signal.SIGTERM, _terminate)
    try:
        app()
    except PyPruneError as error:
        print(f"pyprune: error: {error}", file=sys.stderr)
        sys.exit(2)
    except SystemExit as stop:
        if stop.code == _INTERRUPTED:
            print("pyprune: interrupted; prune and retrain go on with --resume from what was finished", file=sys.stderr)
        raise


def _terminate(signum: int, frame: object) -> None:
    # Unwinds like Ctrl-C, so that half-written folders are removed.
    raise KeyboardInterrupt
