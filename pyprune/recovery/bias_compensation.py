"""Bias compensation (FLAP, An et al. 2024): what removed channels carried on average goes into the projection's bias.

    b <- b + sum over removed channels j of W_:j mean(x_j)

with means over the tokens of the dense model. Costs nothing at run time; layers without a bias are left as they are.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from pyprune.core.anatomy import Anatomy
from pyprune.core.layers import matrix
from pyprune.core.plan import Plan
from pyprune.core.statistics import ChannelTotals
from pyprune.recovery.blockwise import Outcome

NO_BIAS = "the projection has no bias to compensate in (tuning refit does without)"


@torch.no_grad()
def compensate_bias(
    student: nn.Module, dense: nn.Module, anatomy: Anatomy, plan: Plan, channels: Mapping[str, ChannelTotals]
) -> list[Outcome]:
    """Change the biases of the sliced `student` in place; what became of each block.

    `anatomy`, `plan` and `channels` are those of the `dense` model. Projections keep their names when a model is cut.
    """
    anatomy.need_projections("bias compensation")
    outcomes = []
    for block in anatomy.blocks:
        group = block.units
        teacher, projection = dense.get_submodule(block.projection), student.get_submodule(block.projection)
        if plan.counts[group.name] == group.size:
            outcomes.append(Outcome(group.name, False, "nothing was removed"))
        elif projection.bias is None:
            outcomes.append(Outcome(group.name, False, NO_BIAS))
        else:
            gone = (~plan.mask(group.name)).repeat_interleave(group.width)
            missing = matrix(teacher).double()[:, gone.to(teacher.weight.device)]
            mean = channels[group.name].mean[gone].to(missing)
            projection.bias.copy_(projection.bias.double() + (missing @ mean).to(projection.bias.device))
            outcomes.append(Outcome(group.name, True))
    return outcomes
