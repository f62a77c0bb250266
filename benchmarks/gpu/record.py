"""What a section is told and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True)
class Settings:
    """What all sections need to know.

    device: where to run
    tiny: small shapes only
    scratch: a folder that goes away at the end
    results: folder of the CSV file, None to write no rows
    model: directory of the main job's model, None for a random one
    """

    device: str
    tiny: bool
    scratch: str
    results: str | None = None
    model: str | None = None


@dataclass(frozen=True)
class Check:
    """One line of the report; `detail` is the reason of a check that failed or was skipped."""

    name: str
    status: Status
    detail: str = ""
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"{self.status:<8}{self.name:<44}{self.seconds:>7.1f} s  {self.detail}"
