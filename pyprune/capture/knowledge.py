"""What the channels of every block know, by one forward and one backward pass a batch (K-prune: Park, Choi and Kang
2024).

A channel's mask multiplies what it hands to the output projection. Its *predictive* knowledge is half the squared
gradient of a loss at that mask, its *representational* knowledge the squared norm of what the channel writes to the
residual stream.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from pyprune.capture.collect import backward_passes
from pyprune.capture.cotangent import Cotangent
from pyprune.capture.mask_taps import mask_taps
from pyprune.capture.taps import by_sample, need_reached
from pyprune.core.anatomy import Anatomy, Block
from pyprune.core.batches import Batch
from pyprune.core.errors import NumericsError
from pyprune.core.layers import matrix


@dataclass
class Knowledge:
    """`predictive[name]` and `representational[name]` are `[size * width]` float64, one number a channel.

    Predictive knowledge is a mean over samples; representational knowledge one over outputs and over the `tokens[name]`
    that passed the block.
    """

    predictive: dict[str, torch.Tensor]
    representational: dict[str, torch.Tensor]
    tokens: dict[str, int]


def collect_knowledge(
    model: nn.Module, anatomy: Anatomy, batches: Iterable[Batch], loss: Cotangent, samples: int, group: int = 1
) -> Knowledge:
    """What the blocks of `anatomy` know of the `samples` in `batches`; other blocks are left out of the backward pass.

    `loss` is a sum over samples. With a `group` above 1 gradients are averaged over so many samples, in the data's own
    order, before they are squared, and the mean is still one over samples. Raises NumericsError naming the group where
    a gradient or an activation is NaN or Inf.
    """
    anatomy.need_projections("knowledge")
    blocks = [block for block in anatomy.blocks if block.units.size]
    channels = replace(anatomy, blocks=tuple(_by_channel(block) for block in blocks))
    gradients: dict[str, torch.Tensor] = {}  # [size * width] of squares, or [groups, size * width] of sums
    energy = {block.units.name: [torch.zeros((), dtype=torch.float64), 0] for block in blocks}
    sizes = torch.bincount(torch.arange(samples) // group).double()
    found: dict[str, torch.Tensor] = {}
    current: Batch | None = None

    def told() -> Iterator[Batch]:
        nonlocal current
        for batch in batches:
            current = batch.on(model)
            yield batch

    def watch(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            assert current is not None
            rows = current.real(by_sample(args[0].detach(), len(current.index)))
            rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
            energy[name][0] = energy[name][0] + rows.square().sum(0).double().cpu()
            energy[name][1] += len(rows)

        return hook

    def add(name: str, values: torch.Tensor, units: torch.Tensor) -> None:
        found[name] = found[name] + values if name in found else values

    with ExitStack() as hooks:
        for block in blocks:
            projection = model.get_submodule(block.projection)
            hooks.callback(projection.register_forward_pre_hook(watch(block.units.name)).remove)
        hooks.enter_context(mask_taps(model, channels, add))
        for batch, _, scale in backward_passes(model, told(), loss, 1):
            need_reached(energy, found)
            for name, g in found.items():
                g = g.double().cpu() / scale
                if group == 1:
                    gradients[name] = gradients.get(name, 0) + g.square().sum(0)
                else:
                    sums = gradients.setdefault(name, torch.zeros(len(sizes), g.shape[1], dtype=torch.float64))
                    sums.index_add_(0, batch.index.cpu() // group, g)
            found.clear()
    knowledge = Knowledge({}, {}, {})
    for block in blocks:
        name, (squares, tokens) = block.units.name, energy[block.units.name]
        g = gradients[name]
        g = g if group == 1 else (g / sizes[:, None]).square().sum(0)
        written = matrix(model.get_submodule(block.projection)).detach().double().square().mean(0).cpu()
        knowledge.tokens[name] = tokens
        knowledge.predictive[name] = 0.5 * g / samples
        knowledge.representational[name] = squares * written / tokens
        if not all(torch.isfinite(k[name]).all() for k in (knowledge.predictive, knowledge.representational)):
            raise NumericsError(
                f"gradients or activations of {name} hold NaN or Inf; check the weights and the data, or load the "
                "model in a wider dtype"
            )
    return knowledge


def _by_channel(block: Block) -> Block:
    """`block` with its channels for units."""
    return replace(block, units=replace(block.units, size=block.units.size * block.units.width, width=1))
