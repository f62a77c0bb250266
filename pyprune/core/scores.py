"""What every unit is worth: one number a unit, higher is more important."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pyprune.core.errors import InputError, NumericsError
from pyprune.core.statistics import Statistics
from pyprune.core.storage import read_tensors, write_tensors


@dataclass
class Scores:
    """`values[name]` is `[size]` float64, additive: the loss of removing a set of units is the sum of their scores.

    `statistics` is what they were computed from, kept for stages that need more than the sums (rearrangement); None for
    criteria without data.
    """

    values: dict[str, torch.Tensor]
    meta: dict[str, Any] = field(default_factory=dict)
    statistics: Statistics | None = None

    def __post_init__(self) -> None:
        self.values = {name: v.detach().double().cpu() for name, v in self.values.items()}
        for name, value in self.values.items():
            if not torch.isfinite(value).all():
                raise NumericsError(f"scores of {name} hold NaN or Inf; the model's outputs or gradients overflowed")

    @property
    def mean_length(self) -> float:
        """Tokens of a sample of the data, at which FLOPs are counted; InputError for scores without data."""
        if "mean_length" not in self.meta:
            raise InputError(
                "these scores do not say how long their data was: give length=, at which FLOPs are counted"
            )
        return float(self.meta["mean_length"])

    def save(self, path: str | Path) -> None:
        """Write scores and statistics to one safetensors file."""
        tensors = {f"scores/{name}": value for name, value in self.values.items()}
        meta: dict[str, Any] = {"meta": self.meta}
        if self.statistics is not None:
            tensors |= self.statistics.tensors()
            meta["statistics"] = {"draws": self.statistics.draws, "meta": self.statistics.meta}
        write_tensors(path, tensors, meta)

    @classmethod
    def load(cls, path: str | Path) -> Scores:
        """Read what `save` wrote; InputError on a missing, truncated or foreign file."""
        tensors, meta = read_tensors(path)
        values = {name.removeprefix("scores/"): v for name, v in tensors.items() if name.startswith("scores/")}
        if not values:
            raise InputError(f"{path}: holds no scores")
        own = meta.get("statistics")
        statistics = None if own is None else Statistics.from_tensors(tensors, own["draws"], own["meta"])
        return cls(values, meta["meta"], statistics)
