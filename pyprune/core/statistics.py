"""What one pass of data through a model leaves behind: per-sample mask gradients of every unit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass
class Statistics:
    """Per-sample gradients of the summed loss with respect to unit masks, at mask 1.

    `gradients[name]` is `[S * P, size]` fp32: row `s * P + p` belongs to sample `s` (in the data's own order, however
    it was batched) and to cotangent draw `p` of `P = draws`. Diagonal and block Fisher information derive from it.
    `lengths` is `[S]` int64, the real tokens of each sample. `meta` says how it was collected (cotangent, seed, model,
    dtype).
    """

    gradients: dict[str, torch.Tensor]
    lengths: torch.Tensor
    draws: int = 1
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        return int(self.lengths.numel())

    @property
    def mean_length(self) -> float:
        """Mean number of real tokens a sample: the length at which FLOPs are counted unless another is given."""
        return float(self.lengths.double().mean())

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything but `draws` and `meta`, by name, as `Scores.save` writes it."""
        return {"lengths": self.lengths, **{f"gradients/{name}": g for name, g in self.gradients.items()}}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor], draws: int, meta: dict[str, Any]) -> Statistics:
        """The inverse of `tensors`; entries of other names are ignored."""
        gradients = {name.removeprefix("gradients/"): g for name, g in tensors.items() if name.startswith("gradients/")}
        return cls(gradients, tensors["lengths"], draws, meta)
