"""The options that scripts of benchmarks share, and the table that their rows go to."""

from __future__ import annotations

import argparse
from pathlib import Path

from pyprune.bench.results import Results, table_path


def parser(description: str | None, repeats: int) -> argparse.ArgumentParser:
    """`--device`, `--repeats`, `--results` and `--dry`; a script adds its own."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--device", default="auto", help="auto, cpu, cuda, ...; auto takes the GPU where there is one")
    made.add_argument("--repeats", type=int, default=repeats)
    made.add_argument("--results", type=Path, metavar="DIR", help="folder of the CSV file")
    made.add_argument("--dry", action="store_true", help="print, do not write results")
    return made


def results(benchmark: str, args: argparse.Namespace, device: str) -> Results:
    """The rows of a script, for the file that its options name."""
    return Results(benchmark, path=args.results and table_path(args.results, device), device=device)
