"""The output heads of a model, found by watching what runs behind its last layer."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from pyprune.capture.collect import frozen
from pyprune.capture.outputs import run
from pyprune.core.anatomy import Anatomy
from pyprune.core.batches import Batch


@torch.no_grad()
def output_heads(model: nn.Module, anatomy: Anatomy, batch: Batch) -> list[nn.Parameter]:
    """Parameters of the modules that run for the first time behind the last layer: norms, poolers, classifiers.

    Those that are tied to a parameter in front of it, as an output head to an embedding, are among them.
    """
    order: list[nn.Module | None] = []  # None: a layer has ended

    def remember(module: nn.Module, args: Any, output: Any) -> None:
        order.append(module)

    def end(_: nn.Module, args: Any, output: Any) -> None:
        order.append(None)

    layers = {model.get_submodule(path) for path in anatomy.layers}
    inside = {module for layer in layers for module in layer.modules()}
    with ExitStack() as stack, frozen(model):
        for module in model.modules():
            if module in layers:
                stack.callback(module.register_forward_hook(end).remove)
            elif module not in inside and next(module.parameters(recurse=False), None) is not None:
                stack.callback(module.register_forward_hook(remember).remove)
        run(model, batch.on(model).inputs)
    last = len(order) - order[::-1].index(None) if None in order else len(order)
    before = set(order[:last])
    heads = dict.fromkeys(module for module in order[last:] if module is not None and module not in before)
    return list({id(p): p for module in heads for p in module.parameters(recurse=False)}.values())
