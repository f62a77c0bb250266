"""One pass of data through a frozen model: per-sample mask gradients of every unit, without masks in the graph.

With O the input of a block's output projection, d loss / d mask[u] = sum over tokens and the unit's channels of O * dO
(Kwon et al. 2022, at mask 1). A *tap* at that input is an identity whose backward hands O and dO to
`pyprune.ops.prod_reduce`. Nothing else is added: no mask tensor, attention keeps its fused kernel, weights have no
gradient, and the backward pass ends at the first tap.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from pyprune.capture.cotangent import Cotangent
from pyprune.capture.outputs import repeatable, run
from pyprune.capture.taps import batch_size, by_sample, need_reached
from pyprune.core.anatomy import Anatomy, Block
from pyprune.core.batches import Batch
from pyprune.core.errors import InputError, NumericsError
from pyprune.core.statistics import Statistics
from pyprune.core.units import UnitGroup
from pyprune.ops import prod_reduce

# fp16 gradients of a pooled embedding sit near its subnormals (6e-8): a power of two keeps them clear and divides out
# exactly.
_FP16_SCALE = 1024.0


class _Tap(torch.autograd.Function):
    """Identity; the backward pass reports `prod_reduce(x, dx)`. `anchor` starts a graph here if nothing before did."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, anchor: torch.Tensor, group: UnitGroup, samples: int, sink: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.group, ctx.samples, ctx.sink = group, samples, sink
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, dx: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        x, per_sample = by_sample(x, ctx.samples), by_sample(dx, ctx.samples)
        ctx.sink[ctx.group.name] = prod_reduce(x, per_sample, group=ctx.group.width)
        return (dx if ctx.needs_input_grad[0] else None), None, None, None, None


@contextmanager
def _taps(model: nn.Module, blocks: Sequence[Block], sink: dict[str, torch.Tensor]) -> Iterator[None]:
    with ExitStack() as hooks:
        samples_seen = hooks.enter_context(batch_size(model))

        def hook(block: Block, anchor: torch.Tensor) -> Any:
            def tap(_: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
                x, *rest = args
                return (_Tap.apply(x, anchor, block.units, samples_seen(), sink), *rest)

            return tap

        for block in blocks:
            projection = model.get_submodule(block.projection)
            anchor = torch.zeros((), device=next(projection.parameters()).device, requires_grad=True)
            hooks.callback(projection.register_forward_pre_hook(hook(block, anchor)).remove)
        yield


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
    anatomy.need_projections("mask gradients")
    blocks = [block for block in anatomy.blocks if block.units.size]
    gradients = {g.name: torch.zeros(len(lengths) * draws, g.size) for g in anatomy.groups}
    sink: dict[str, torch.Tensor] = {}
    with _taps(model, blocks, sink):
        for batch, draw, scale in backward_passes(model, batches, cotangent, draws, dropout):
            need_reached((block.units.name for block in blocks), sink)
            rows = batch.index * draws + draw
            for name, g in sink.items():
                gradients[name][rows] = g.float().cpu() / scale
            sink.clear()
    for name, g in gradients.items():
        if not torch.isfinite(g).all():
            raise NumericsError(
                f"mask gradients of {name} hold NaN or Inf; check the weights and the data, or score in a wider dtype"
            )
    return Statistics(gradients, lengths, draws, dict(meta or {}))
