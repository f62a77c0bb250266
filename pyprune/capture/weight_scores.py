"""What the gradients of a unit's single weights add up to, without a weight gradient in memory.

With g the gradient of the summed loss at a weight w, a weight is worth |w g| to first order, or w^2 times the sum over
samples of its squared gradients to second order (LLM-Pruner: Ma, Fang and Wang 2023). `pyprune.ops.wgrad_group_scores`
sums these over the rows and columns of a layer while the gradient lives in registers or cache.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Literal

import torch
from torch import nn

from pyprune.capture.collect import backward_passes, loss_scale
from pyprune.capture.cotangent import Cotangent
from pyprune.capture.taps import output_taps
from pyprune.core.anatomy import Anatomy
from pyprune.core.batches import Batch
from pyprune.core.errors import NumericsError
from pyprune.core.layers import matrix, output_dim
from pyprune.core.units import Cut
from pyprune.ops import wgrad_group_scores

Mode = Literal["abs", "sq", "mix"]


def collect_weight_scores(
    model: nn.Module, anatomy: Anatomy, batches: Iterable[Batch], cotangent: Cotangent, mode: Mode, draws: int = 1
) -> dict[str, torch.Tensor]:
    """`[size]` float64 for every group: the scores of all weights that go with a unit, over `batches` and draws.

    mode: `abs` |w g| with g the gradient over a batch; `sq` w^2 times the sum over samples of g^2; `mix` the absolute
    value of their difference w g - w^2 g^2 / 2. `abs` and `mix` depend on how samples are batched, as published: within
    a batch gradients cancel. Raises NumericsError naming the group where a score is NaN or Inf.
    """
    anatomy.need_projections("weight gradients")
    scores = {g.name: torch.zeros(g.size, dtype=torch.float64) for g in anatomy.groups}
    # A layer may be cut by several groups or on both sides: it is scored once.
    cuts: dict[str, list[tuple[str, Cut]]] = defaultdict(list)
    for group in anatomy.groups:
        for cut in group.cuts if group.size else ():
            if cut.tensor.endswith(".weight"):
                cuts[cut.module].append((group.name, cut))
    found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    scale = loss_scale(model)

    def keep(path: str, x: torch.Tensor, dy: torch.Tensor) -> None:
        weight = matrix(model.get_submodule(path)).detach()
        if scale != 1:  # the true gradient would be too small for fp16
            dy, x, weight = dy.float() / scale, x.float(), weight.float()
        found[path] = wgrad_group_scores(dy, x, weight, None, mode)

    with output_taps(model, [(path, path) for path in cuts], keep):
        for _ in backward_passes(model, batches, cotangent, draws):
            for path, (rows, columns) in found.items():
                for name, cut in cuts[path]:
                    channels = (rows if cut.dim == output_dim(model.get_submodule(path)) else columns).double().cpu()
                    scores[name] += channels[cut.positions(torch.arange(len(scores[name])))].sum(1)
            found.clear()
    for name, values in scores.items():
        if not torch.isfinite(values).all():
            raise NumericsError(f"weight gradients of {name} hold NaN or Inf; check the weights and the data")
    return scores
