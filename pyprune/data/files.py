"""Files of data: text, and one JSON object a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pyprune.core.errors import InputError


def read_text(path: Path) -> str:
    """The text of a file; InputError when it is not UTF-8."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"data: {path} is not UTF-8 text (byte {error.start})") from None
    if "\x00" in text:
        raise InputError(f"data: {path} is a binary file, not text")
    return text


def json_rows(path: Path) -> dict[int, dict[str, Any]]:
    """`{line number: row}` of a `.jsonl` file, empty lines left out; InputError where a line is no row."""
    rows = {}
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"data: {path} line {number} is not JSON ({error})") from None
        if not isinstance(row, dict):
            raise InputError(f"data: {path} line {number} is not an object")
        rows[number] = row
    return rows
