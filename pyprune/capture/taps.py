"""Taps at the outputs of linear layers: an identity whose backward hands over the gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

OnGradient = Callable[[str, torch.Tensor, torch.Tensor], None]


class _OutputTap(torch.autograd.Function):
    """Identity; the backward pass hands over the gradient. `anchor` starts a graph here if nothing before did."""

    @staticmethod
    def forward(
        ctx: Any, y: torch.Tensor, anchor: torch.Tensor, report: Callable[[torch.Tensor], None]
    ) -> torch.Tensor:
        ctx.report = report
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        ctx.report(dy)
        return (dy if ctx.needs_input_grad[0] else None), None, None


@contextmanager
def output_taps(model: nn.Module, layers: Iterable[tuple[str, str]], on_gradient: OnGradient) -> Iterator[None]:
    """Call `on_gradient(name, x, dy)` in every backward pass for every `(name, module path)` of `layers`.

    `x` `[B, T, n]` is the layer's input, `dy` `[B, T, d]` the gradient at its output.
    """

    def hook(name: str, anchor: torch.Tensor) -> Any:
        def tap(_: nn.Module, args: tuple[torch.Tensor, ...], y: torch.Tensor) -> torch.Tensor:
            x = args[0].detach()
            return _OutputTap.apply(y, anchor, lambda dy: on_gradient(name, x, dy))

        return tap

    handles = []
    try:
        for name, path in layers:
            layer = model.get_submodule(path)
            anchor = torch.zeros((), device=next(layer.parameters()).device, requires_grad=True)
            handles.append(layer.register_forward_hook(hook(name, anchor)))
        yield
    finally:
        for handle in handles:
            handle.remove()
