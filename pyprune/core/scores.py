"""What every unit is worth: one number a unit, higher is more important."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pyprune.core.errors import NumericsError
from pyprune.core.storage import read_tensors, write_tensors


@dataclass
class Scores:
    """`values[name]` is `[size]` float64, additive: the loss of removing a set of units is the sum of their scores."""

    values: dict[str, torch.Tensor]
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.values = {name: v.detach().double().cpu() for name, v in self.values.items()}
        for name, value in self.values.items():
            if not torch.isfinite(value).all():
                raise NumericsError(f"scores of {name} hold NaN or Inf; the model's outputs or gradients overflowed")

    def save(self, path: str | Path) -> None:
        write_tensors(path, self.values, self.meta)

    @classmethod
    def load(cls, path: str | Path) -> Scores:
        """Read what `save` wrote; InputError on a missing, truncated or foreign file."""
        return cls(*read_tensors(path))
