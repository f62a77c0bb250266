"""Weight magnitude: the squared L2 norm of a unit's weights (Han et al. 2015, grouped as in Li et al. 2017).

The norm is summed, not averaged: a budget search weighs a score against the unit's cost, which grows with its weights.
"""

from __future__ import annotations

import torch
from torch import nn

from pyprune.core.errors import InputError
from pyprune.importance.registry import Evidence, criterion


@criterion("magnitude")
def magnitude(evidence: Evidence) -> dict[str, torch.Tensor]:
    if evidence.anatomy.token_groups:
        raise InputError('criterion="magnitude": tokens have no weights; choose criterion="fisher"')
    scores = {}
    weights = dict(evidence.model.named_parameters(remove_duplicate=False))  # running statistics are none
    for group in evidence.anatomy.groups:
        total = torch.zeros(group.size, dtype=torch.float64)
        for cut in group.cuts:
            tensor = weights.get(cut.tensor)
            if tensor is not None and tensor.dim() > 1:
                channels = tensor.detach().double().square().movedim(cut.dim, 0).flatten(1).sum(1).cpu()
                total += channels[cut.positions(torch.arange(group.size))].sum(1)
        scores[group.name] = total
    for group in evidence.anatomy.layer_groups:
        layers = [evidence.model.get_submodule(path) for path in group.layers]
        scores[group.units.name] = torch.tensor([_weights_of(layer) for layer in layers], dtype=torch.float64)
    return scores


def _weights_of(layer: nn.Module) -> float:
    """Squared norm of all matrices of a layer."""
    return sum(float(tensor.detach().double().square().sum()) for tensor in layer.parameters() if tensor.dim() > 1)
