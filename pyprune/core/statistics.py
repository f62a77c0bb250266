"""What one pass of data through a model leaves behind: gradients of every unit's mask, or what its channels carried."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

_CHANNEL_FIELDS = ("mean", "m2", "energy")


@dataclass
class ChannelTotals:
    """What the channels of one group carried over all tokens of all samples; `[C]` float64 each, C = size * width.

    - `mean`: mean over the `count` tokens; `m2`: sum of squared deviations from it;
    - `energy`: sum over samples of the squared mean of |x| over the sample's tokens.
    """

    count: int
    mean: torch.Tensor
    m2: torch.Tensor
    energy: torch.Tensor

    @classmethod
    def zeros(cls, channels: int) -> ChannelTotals:
        return cls(0, *(torch.zeros(channels, dtype=torch.float64) for _ in _CHANNEL_FIELDS))

    @property
    def squares(self) -> torch.Tensor:
        """Sum of x^2 over all tokens."""
        return self.m2 + self.count * self.mean.square()

    def add(self, lengths: torch.Tensor, mean: torch.Tensor, m2: torch.Tensor, l1: torch.Tensor) -> None:
        """Take in samples: `lengths` `[B]` tokens, and `[B, C]` of each sample's mean, M2 and sum of |x|.

        Chan, Golub and LeVeque 1979: deviations are taken from the new mean, so that nothing cancels.
        """
        counts = lengths.double()[:, None]
        mean, m2, l1 = (t.double().cpu() for t in (mean, m2, l1))
        total = self.count + int(lengths.sum())
        if total == 0:
            return
        merged = (self.count * self.mean + (counts * mean).sum(0)) / total
        apart = self.count * (self.mean - merged).square() + (counts * (mean - merged).square()).sum(0)
        self.m2 = self.m2 + m2.sum(0) + apart
        self.count, self.mean = total, merged
        self.energy = self.energy + (l1 / counts.clamp(min=1)).square().sum(0)


@dataclass
class Statistics:
    """What a pass of `S` samples gave; a criterion reads the part that it asked for, the others are empty.

    - `gradients[name]` `[S * P, size]` fp32: per-sample gradients of the summed loss with respect to unit masks, at
      mask 1. Row `s * P + p` belongs to sample `s` (in the data's own order, however it was batched) and to cotangent
      draw `p` of `P = draws`. Diagonal and block Fisher information derive from it.
    - `channels[name]`: the totals of the group's channels.
    - `weights[name]` `[size]` float64: what the gradients of the unit's single weights add up to
      (`capture.weight_scores`).

    `lengths` is `[S]` int64, the real tokens of each sample. `meta` says how it was collected (cotangent, seed, model,
    dtype).
    """

    gradients: dict[str, torch.Tensor]
    lengths: torch.Tensor
    draws: int = 1
    meta: dict[str, Any] = field(default_factory=dict)
    channels: dict[str, ChannelTotals] = field(default_factory=dict)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        return int(self.lengths.numel())

    @property
    def mean_length(self) -> float:
        """Mean number of real tokens a sample: the length at which FLOPs are counted unless another is given."""
        return float(self.lengths.double().mean())

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything but `draws` and `meta`, by name, as `Scores.save` writes it."""
        found = {"lengths": self.lengths}
        found |= {f"gradients/{name}": g for name, g in self.gradients.items()}
        found |= {f"weights/{name}": w for name, w in self.weights.items()}
        for name, totals in self.channels.items():
            found |= {f"channels.{part}/{name}": getattr(totals, part) for part in _CHANNEL_FIELDS}
            found[f"channels.count/{name}"] = torch.tensor(totals.count)
        return found

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor], draws: int, meta: dict[str, Any]) -> Statistics:
        """The inverse of `tensors`; entries of other names are ignored."""

        def of(kind: str) -> dict[str, torch.Tensor]:
            return {k.removeprefix(f"{kind}/"): t for k, t in tensors.items() if k.startswith(f"{kind}/")}

        parts = [of(f"channels.{part}") for part in _CHANNEL_FIELDS]
        channels = {
            name: ChannelTotals(int(count), *(part[name] for part in parts))
            for name, count in of("channels.count").items()
        }
        return cls(of("gradients"), tensors["lengths"], draws, meta, channels, of("weights"))
