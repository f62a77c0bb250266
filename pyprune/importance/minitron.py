"""Minitron-style activation importance (Muralidharan et al. 2024): how strongly a unit is active.

Mean over a sample's tokens of |x|, then the L2 norm over samples; a head's channels are summed. No weight is looked at.
The publication prunes every layer to the same width, so every block loses the same share of its units.
"""

from __future__ import annotations

import torch

from pyprune.importance.comparable import ranked
from pyprune.importance.registry import Evidence, criterion


@criterion("minitron", needs="channels")
def minitron(evidence: Evidence) -> dict[str, torch.Tensor]:
    channels = evidence.given().channels
    values = {g.name: channels[g.name].energy.sqrt().view(g.size, g.width).sum(1) for g in evidence.anatomy.groups}
    return ranked(values, evidence.anatomy)
