"""Weight magnitude: the squared L2 norm of a unit's weights (Han et al. 2015, grouped as in Li et al. 2017).

The norm is summed, not averaged: a budget search weighs a score against the unit's cost, which grows with its weights.
"""

from __future__ import annotations

import torch

from pyprune.importance.registry import Evidence, criterion


@criterion("magnitude")
def magnitude(evidence: Evidence) -> dict[str, torch.Tensor]:
    scores = {}
    for group in evidence.anatomy.groups:
        total = torch.zeros(group.size, dtype=torch.float64)
        for cut in group.cuts:
            weight = evidence.model.get_submodule(cut.module).weight.detach()
            channels = weight.double().square().sum(0 if cut.side == "in" else 1).cpu()
            total += channels.view(group.size, cut.width).sum(1)
        scores[group.name] = total
    return scores
