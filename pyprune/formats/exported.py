"""What an export made, and the check that a file has to pass to appear."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pyprune.core.errors import InputError, MismatchError
from pyprune.slicing.check import max_difference
from pyprune.verification import Check, allowed


@dataclass(frozen=True)
class Exported:
    """Where an export is, the comparisons with the model's own outputs that it passed, and what a user should know."""

    out: Path
    checks: tuple[Check, ...]
    notes: tuple[str, ...] = ()


def checked(name: str, expected: dict[str, torch.Tensor], found: dict[str, Any]) -> Check:
    """Compare outputs within the rounding of their dtype; MismatchError says how far they are apart."""
    largest = max((float(t.abs().max()) for t in expected.values() if t.numel()), default=0.0)
    dtype = next((t.dtype for t in expected.values() if t.is_floating_point()), torch.float32)
    check = Check(name, max_difference(expected, found), allowed(dtype, largest))
    if not check.equal:
        raise MismatchError(
            f"{name}: the exported model differs by {check.difference:.3e} from the model itself "
            f"(allowed {check.allowed:.1e}); nothing was written"
        )
    return check


def check_file(out: Path, overwrite: bool) -> None:
    """Raise InputError unless the file `out` can be written."""
    if out.is_dir():
        raise InputError(f"out={str(out)!r} is a directory; give a file")
    if out.exists() and not overwrite:
        raise InputError(f"out={str(out)!r} exists already; give --overwrite (overwrite=True) or another name")
    if not os.access(out.absolute().parent, os.W_OK):
        raise InputError(f"out={str(out)!r}: the folder {out.parent} does not exist or cannot be written to")


@contextmanager
def complete_file(out: Path) -> Iterator[Path]:
    """A path of the same name in a new folder beside `out`; what is there when the block ends, further files of weights
    included, takes its place beside `out`, and vanishes when the block raises.
    """
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.absolute().parent) as folder:
        yield Path(folder) / out.name
        for file in sorted(Path(folder).iterdir(), reverse=True):  # OUT.data before OUT
            os.replace(file, out.with_name(file.name))
