"""Random scores: the floor that every criterion has to clear."""

from __future__ import annotations

import torch

from pyprune.importance.registry import Evidence, criterion


@criterion("random")
def random(evidence: Evidence) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(evidence.seed)
    # A unit's score is proportional to its size, so that heads and neurons compete per weight; layers and width
    # have no price of their own.
    return {
        g.name: torch.rand(g.size, generator=generator, dtype=torch.float64) * (g.cost.params or 1)
        for g in evidence.anatomy.groups
    }
