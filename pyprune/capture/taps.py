"""Taps: identities whose backward passes hand over the gradient."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from pyprune.core.errors import InputError

OnGradient = Callable[[str, torch.Tensor, torch.Tensor], None]
Report = Callable[[torch.Tensor, torch.Tensor], None]


def by_sample(x: torch.Tensor, samples: int) -> torch.Tensor:
    """`x` `[..., n]`, whose first dimensions hold the samples' tokens in order, as `[samples, T, n]`.

    Some families flatten samples into one row of tokens, or split them into windows.
    """
    # Not -1: a block that was emptied hands over no channels.
    return x if x.dim() == 3 and len(x) == samples else x.reshape(samples, x.shape[:-1].numel() // samples, x.shape[-1])


def need_reached(names: Iterable[str], reached: Container[str]) -> None:
    """InputError for the first of `names` that is not `reached`: what nothing is known of would count for nothing."""
    for name in names:
        if name not in reached:
            raise InputError(f"{name}: the data never passes it, or the loss does not depend on it")


@contextmanager
def batch_size(model: nn.Module) -> Iterator[Callable[[], int]]:
    """A function that tells how many samples the last forward pass of `model` was given (by keyword)."""
    last = 0

    def remember(_: nn.Module, __: tuple, kwargs: dict[str, Any]) -> None:
        nonlocal last
        last = len(next(value for value in kwargs.values() if isinstance(value, torch.Tensor)))

    handle = model.register_forward_pre_hook(remember, with_kwargs=True)
    try:
        yield lambda: last
    finally:
        handle.remove()


class _Tap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: torch.Tensor, x: torch.Tensor, anchor: torch.Tensor, report: Report) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.report = report
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        ctx.report(*ctx.saved_tensors, dy)
        return (dy if ctx.needs_input_grad[0] else None), None, None, None


def tapped(y: torch.Tensor, x: torch.Tensor, report: Report) -> torch.Tensor:
    """`y`, whose gradient every backward pass hands to `report(x, dy)`; `x` is any other tensor of the forward pass."""
    # The anchor starts a graph here if nothing before did.
    anchor = torch.zeros((), device=y.device, requires_grad=True)
    return _Tap.apply(y, x.detach(), anchor, report)


@contextmanager
def output_taps(model: nn.Module, layers: Iterable[tuple[str, str]], on_gradient: OnGradient) -> Iterator[None]:
    """Call `on_gradient(name, x, dy)` in every backward pass for every `(name, module path)` of `layers`.

    `x` `[B, T, n]` is the layer's input, `dy` `[B, T, d]` the gradient at its output.
    """

    with ExitStack() as hooks:
        samples_seen = hooks.enter_context(batch_size(model))

        def hook(name: str) -> Any:
            def tap(_: nn.Module, args: tuple[torch.Tensor, ...], y: torch.Tensor) -> torch.Tensor:
                n = samples_seen()
                return tapped(y, args[0], lambda x, dy: on_gradient(name, by_sample(x, n), by_sample(dy, n)))

            return tap

        for name, path in layers:
            hooks.callback(model.get_submodule(path).register_forward_hook(hook(name)).remove)
        yield
