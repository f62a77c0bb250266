"""One pass of data through a frozen model: per-sample mask gradients of every unit, without masks in the graph.

With O the input of a block's output projection, d loss / d mask[u] = sum over tokens and the unit's channels of O * dO
(Kwon et al. 2022, at mask 1). A *tap* at that input is an identity whose backward hands O and dO to
`pyprune.ops.prod_reduce`. Nothing else is added: no mask tensor, attention keeps its fused kernel, weights have no
gradient, and the backward pass ends at the first tap. Units whose masks act elsewhere have theirs there
(`capture.mask_taps`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from pyprune.capture.cotangent import Cotangent
from pyprune.capture.mask_taps import mask_taps
from pyprune.capture.outputs import repeatable, run
from pyprune.capture.taps import need_reached
from pyprune.core.anatomy import Anatomy
from pyprune.core.batches import Batch
from pyprune.core.errors import InputError, NumericsError
from pyprune.core.statistics import Statistics

# fp16 gradients of a pooled embedding sit near its subnormals (6e-8): a power of two keeps them clear and divides out
# exactly.
_FP16_SCALE = 1024.0


@contextmanager
def frozen(model: nn.Module, dropout: bool = False) -> Iterator[nn.Module]:
    """Evaluation mode, no weight gradients, no KV cache, outputs by name; everything as before afterwards.

    With `dropout` it is training mode instead.
    """
    training = [(module, module.training) for module in model.modules()]
    trainable = [(p, p.requires_grad) for p in model.parameters()]
    config: Any = getattr(model, "config", None)
    wanted = {"use_cache": False, "return_dict": True}
    settings = {name: getattr(config, name) for name in wanted if hasattr(config, name)}
    try:
        model.train(dropout)
        for p, _ in trainable:
            p.requires_grad_(False)
        for name in settings:
            setattr(config, name, wanted[name])
        yield model
    finally:
        for module, mode in training:
            module.training = mode
        for p, required in trainable:
            p.requires_grad_(required)
        for name, value in settings.items():
            setattr(config, name, value)


def loss_scale(model: nn.Module) -> float:
    """What losses are multiplied by before they are differentiated: 1, but for models in fp16."""
    return _FP16_SCALE if next(model.parameters()).dtype == torch.float16 else 1.0


def backward_passes(
    model: nn.Module, batches: Iterable[Batch], cotangent: Cotangent, draws: int, dropout: bool = False
) -> Iterator[tuple[Batch, int, float]]:
    """One backward pass per batch and draw, draws sharing the forward; yields `(batch, draw, scale)` after each.

    Hooks of the caller see gradients multiplied by `scale` (a power of two, see `loss_scale`). The model is
    `frozen` meanwhile, so something of the caller's must start the graph. With `dropout` every forward drops the same.
    """
    if draws < 1:
        raise InputError(f"draws={draws} must be at least 1")
    scale = loss_scale(model)
    with frozen(model, dropout):
        for batch in batches:
            moved = batch.on(model)
            with torch.enable_grad(), repeatable():
                outputs = run(model, moved.inputs)
            for draw in range(draws):
                with torch.enable_grad():
                    value = cotangent(outputs, moved, draw) * scale
                if not value.requires_grad:
                    raise InputError("the loss does not depend on the model's outputs")
                value.backward(retain_graph=draw + 1 < draws)
                yield moved, draw, scale


def collect(
    model: nn.Module,
    anatomy: Anatomy,
    batches: Iterable[Batch],
    cotangent: Cotangent,
    lengths: torch.Tensor,
    draws: int = 1,
    meta: dict[str, Any] | None = None,
    dropout: bool = False,
) -> Statistics:
    """Per-sample mask gradients of every unit of `model` over `batches`, `draws` cotangents a sample.

    `lengths` `[S]` are the samples' real tokens in the data's own order; a batch's `index` points into it. Draws share
    the forward pass. `dropout` leaves it on, as some publications do.
    Raises NumericsError naming the group when a gradient is NaN or Inf.
    """
    anatomy.need_masks("mask gradients")
    sizes = {g.name: g.size for g in anatomy.groups}
    gradients = {name: torch.zeros(len(lengths) * draws, size) for name, size in sizes.items()}
    found: dict[str, torch.Tensor] = {}

    def add(name: str, values: torch.Tensor, units: torch.Tensor) -> None:
        sums = found.setdefault(name, values.new_zeros(len(values), sizes[name]))
        sums.index_add_(1, units.to(sums.device), values)

    with mask_taps(model, anatomy, add):
        for batch, draw, scale in backward_passes(model, batches, cotangent, draws, dropout):
            need_reached((name for name, size in sizes.items() if size), found)
            rows = batch.index * draws + draw
            for name, g in found.items():
                gradients[name][rows] = g.float().cpu() / scale
            found.clear()
    for name, g in gradients.items():
        if not torch.isfinite(g).all():
            raise NumericsError(
                f"mask gradients of {name} hold NaN or Inf; check the weights and the data, or score in a wider dtype"
            )
    return Statistics(gradients, lengths, draws, dict(meta or {}))
