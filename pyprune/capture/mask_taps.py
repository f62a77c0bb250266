"""Taps where the masks of units act, which report the gradients of masks that are not in the graph.

A mask multiplies something that a forward pass computes, so that its gradient at 1 is the sum of that times the
gradient there:

- projection, convolution: what the unit hands to the output projection;
- dimensions of heads: what queries and keys have in common in it, or values;
- an expert: the share of it that the router hands out, as if no other expert took over what it loses;
- a neuron of experts: what each of them hands to its output projection, computed once more from the experts' input;
- a layer: what it adds to the hidden state;
- a token: how much every query of this layer and those that follow attends to it, its weight in softmax. What reads
  the last layer is no attention that could be weighted: to it, a token that goes becomes the mean of all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import nn

from pyprune.capture.taps import batch_size, by_sample, tapped
from pyprune.capture.token_masks import WeightedKeys, forward_replaced
from pyprune.core.anatomy import Anatomy, Block, LayerGroup, TokenGroup
from pyprune.core.units import group_kind
from pyprune.ops import prod_reduce


class Add(Protocol):
    """Takes in `values` `[B, n]`, part of the gradients of the masks of `units` `[n]` of the group `name`."""

    def __call__(self, name: str, values: torch.Tensor, units: torch.Tensor) -> None: ...


Samples = Callable[[], int]
Report = Callable[[torch.Tensor], None]


@contextmanager
def mask_taps(model: nn.Module, anatomy: Anatomy, add: Add) -> Iterator[None]:
    """While it lasts every backward pass through `model` tells `add` each sample's gradients at the masks of all units.

    What is added up for a group is its `[B, size]`. `anatomy` must have no hidden widths.
    """
    with ExitStack() as hooks:
        samples = hooks.enter_context(batch_size(model))
        for block in anatomy.blocks:
            if block.units.size:
                report = partial(add, block.units.name, units=torch.arange(block.units.size))
                _SITES[block.site](hooks, model, block, samples, report)
        for group in anatomy.layer_groups:
            _tap_layers(hooks, model, group, samples, add)
        stacks: dict[str, list[TokenGroup]] = {}
        for tokens in anatomy.token_groups:
            stacks.setdefault(group_kind(tokens.units), []).append(tokens)
        for stack in stacks.values():
            _tap_tokens(hooks, model, stack, add)
        yield


def _tap_input(hooks: ExitStack, model: nn.Module, block: Block, samples: Samples, report: Report) -> None:
    def tap(_: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        n = samples()

        def channels(x: torch.Tensor, dx: torch.Tensor) -> None:
            if block.site == "convolution":
                x, dx = (t.flatten(2).transpose(1, 2) for t in (x, dx))
            report(prod_reduce(by_sample(x, n), by_sample(dx, n), group=block.units.width))

        x, *rest = args
        return (tapped(x, x, channels), *rest)

    hooks.callback(model.get_submodule(block.projection).register_forward_pre_hook(tap).remove)


def _tap_dimensions(hooks: ExitStack, model: nn.Module, block: Block, samples: Samples, report: Report) -> None:
    """Behind the norm over queries where there is one: its statistics are taken as they are."""
    path = (block.norms or block.masked)[0].module
    cuts = [c for c in (block.norms or block.masked) if c.module == path and c.tensor.endswith(".weight")]
    places = [cut.positions(torch.arange(block.units.size)) for cut in cuts]

    def tap(_: nn.Module, args: tuple[torch.Tensor, ...], y: torch.Tensor) -> torch.Tensor:
        n = samples()

        def dimensions(x: torch.Tensor, dx: torch.Tensor) -> None:
            columns = prod_reduce(by_sample(x, n), by_sample(dx, n))
            report(torch.cat([columns[:, place.to(columns.device)] for place in places], -1).sum(-1))

        return tapped(y, y, dimensions)

    hooks.callback(model.get_submodule(path).register_forward_hook(tap).remove)


def _tap_router(hooks: ExitStack, model: nn.Module, block: Block, samples: Samples, report: Report) -> None:
    def tap(_: nn.Module, args: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        n = samples()
        logits, shares, chosen = output

        def experts(share: torch.Tensor, gradient: torch.Tensor) -> None:
            # One column an expert: which of a token's choices it is does not matter.
            of_expert = F.one_hot(chosen, block.units.size).to(share.dtype)
            columns = ((t[..., None] * of_expert).sum(-2) for t in (share, gradient))
            report(prod_reduce(*(by_sample(t, n) for t in columns)))

        return logits, tapped(shares, shares, experts), chosen

    hooks.callback(model.get_submodule(block.projection).register_forward_hook(tap).remove)


def _tap_expert_neurons(hooks: ExitStack, model: nn.Module, block: Block, samples: Samples, report: Report) -> None:
    """Experts are computed by a kernel that keeps their neurons to itself."""
    fused = next(cut.tensor for cut in block.units.cuts if cut.tensor != block.projection)

    def tap(module: Any, args: tuple[torch.Tensor, ...], y: torch.Tensor) -> torch.Tensor:
        n = samples()
        states, chosen, shares = (argument.detach() for argument in args)
        inner, outer = (model.get_parameter(name).detach() for name in (fused, block.projection))

        def neurons(_: torch.Tensor, dy: torch.Tensor) -> None:
            starts = torch.arange(n + 1, device=dy.device) * (len(states) // n)
            sums = []
            for expert in chosen.unique().tolist():
                token, place = (chosen == expert).nonzero(as_tuple=True)
                gate, up = F.linear(states[token], inner[expert]).chunk(2, dim=-1)
                x = module.act_fn(gate) * up
                dx = dy[token] @ outer[expert] * shares[token, place, None].to(dy.dtype)
                sums.append(prod_reduce(x, dx, torch.searchsorted(token, starts)))
            report(torch.stack(sums).sum(0))

        return tapped(y, y, neurons)

    path = block.projection.rpartition(".")[0]
    hooks.callback(model.get_submodule(path).register_forward_hook(tap).remove)


def _tap_layers(hooks: ExitStack, model: nn.Module, group: LayerGroup, samples: Samples, add: Add) -> None:
    for unit, path in enumerate(group.layers):

        def tap(
            _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any, unit: torch.Tensor
        ) -> torch.Tensor | tuple[Any, ...]:
            n = samples()
            entered = args[0] if args else kwargs["hidden_states"]
            left = output if isinstance(output, torch.Tensor) else output[0]

            def added(x: torch.Tensor, dx: torch.Tensor) -> None:
                add(group.units.name, prod_reduce(by_sample(x, n), by_sample(dx, n)).sum(1, keepdim=True), unit)

            left = tapped(left, left.detach() - entered.detach(), added)
            return left if isinstance(output, torch.Tensor) else (left, *output[1:])

        hook = partial(tap, unit=torch.tensor([unit]))
        hooks.callback(model.get_submodule(path).register_forward_hook(hook, with_kwargs=True).remove)


def _tap_tokens(hooks: ExitStack, model: nn.Module, stack: Sequence[TokenGroup], add: Add) -> None:
    """The masks of a layer act on all that follow it, so what one layer reports counts for those before it too."""

    def reports(last: int) -> Report:
        told = stack[last]
        units = {g.units.name: torch.tensor([g.positions.index(p) for p in told.positions]) for g in stack[: last + 1]}

        def report(values: torch.Tensor) -> None:
            for name, of_group in units.items():
                add(name, values[:, told.first :], of_group)

        return report

    for i, group in enumerate(stack):
        layer = model.get_submodule(group.layer)
        hooks.enter_context(forward_replaced(layer, _with_weighted_keys(layer, reports(i))))

    def handed_on(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        hidden = output if isinstance(output, torch.Tensor) else output[0]

        def tokens(x: torch.Tensor, dx: torch.Tensor) -> None:
            x, dx = (t.reshape(len(t), 1, -1) for t in (x, dx))
            report(prod_reduce(x, dx, group=hidden.shape[-1]))

        report = reports(len(stack) - 1)
        hidden = tapped(hidden, hidden.detach() - hidden.detach().mean(1, keepdim=True), tokens)
        return hidden if isinstance(output, torch.Tensor) else (hidden, *output[1:])

    hooks.callback(model.get_submodule(stack[-1].layer).register_forward_hook(handed_on).remove)


def _with_weighted_keys(layer: nn.Module, report: Report) -> Callable[..., Any]:
    """The forward of `layer`, whose backward reports the gradients `[B, T]` at the weights of keys, all of them 1."""
    forward = layer.forward

    def weighted(*args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        logarithms = hidden.new_zeros(len(hidden), 1, 1, hidden.shape[1]).requires_grad_()
        logarithms.register_hook(lambda gradient: report(gradient[:, 0, 0]))
        with WeightedKeys(logarithms):
            return forward(*args, **kwargs)

    return weighted


_SITES = {
    "projection": _tap_input,
    "convolution": _tap_input,
    "weights": _tap_dimensions,
    "router": _tap_router,
    "tensor": _tap_expert_neurons,
}
