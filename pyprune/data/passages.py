"""Passages of text: from files, and the prose that every CPython ships."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pyprune.core.errors import InputError
from pyprune.data.files import json_rows, read_text

T = TypeVar("T")

# Shorter passages of the language reference are headings and single terms, not prose.
_MIN_CHARACTERS = 60


def python_reference() -> list[str]:
    """About 1,400 distinct passages of English prose: the language reference inside CPython's `pydoc_data.topics`."""
    from pydoc_data.topics import topics

    passages = [" ".join(p.split()) for text in topics.values() for p in text.split("\n\n")]
    return _distinct([p for p in passages if len(p) > _MIN_CHARACTERS])


def read_passages(path: str | Path) -> list[str]:
    """Distinct passages of a text file (split at blank lines) or of a `.jsonl` file (the `text` of every line).

    Raises InputError when the file is missing, empty or not UTF-8 text.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"data: {path} is not a file; give a .txt file (passages split by blank lines) or a .jsonl file"
        )
    if path.suffix == ".jsonl":
        passages = [_row_text(path, number, row) for number, row in json_rows(path).items()]
    else:
        passages = [" ".join(p.split()) for p in re.split(r"\n\s*\n", read_text(path))]
    passages = _distinct([p for p in passages if p])
    if not passages:
        raise InputError(f"data: {path} holds no text")
    return passages


def _row_text(path: Path, number: int, row: dict[str, Any]) -> str:
    if not isinstance(row.get("text"), str):
        found = f"; it has {', '.join(row)}" if row else ""
        raise InputError(f'data: {path} line {number} has no "text"{found}')
    return row["text"]


def _distinct(passages: list[str]) -> list[str]:
    # The language reference repeats every fifth passage: without this, held-out passages would be calibration passages.
    return list(dict.fromkeys(passages))


def split(passages: Sequence[T], samples: int, seed: int) -> tuple[list[T], list[T]]:
    """Shuffle with `seed` and split into calibration and held-out passages (or other samples), `samples` of each.

    With fewer than `2 * samples` passages a quarter is held out, at least one. Raises InputError below two passages.
    """
    if len(passages) < 2:
        raise InputError("data: at least two samples are needed, one to calibrate on and one to hold out")
    if samples < 1:
        raise InputError(f"samples={samples} must be at least 1")
    shuffled = list(passages)
    random.Random(seed).shuffle(shuffled)
    held_out = samples if len(shuffled) >= 2 * samples else max(1, len(shuffled) // 4)
    calibration = min(samples, len(shuffled) - held_out)
    return shuffled[:calibration], shuffled[calibration : calibration + held_out]
