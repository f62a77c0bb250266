"""A model as a graph of tensor operations: traced once, for inputs of any batch and length."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyprune.capture.collect import frozen
from pyprune.core.errors import InputError
from pyprune.models.inputs import example_inputs
from pyprune.models.layer_config import LayerConfig

# Batch and length: those that are traced, which no two dimensions share, and those that the graph is tried at.
_TRACED = (2, 12)
_TRIED = ((1, 17), (3, 7))
# The two sides of a model with cross-attention have lengths of their own.
_SIDES = ("encoder_", "decoder_")


class Tensors(nn.Module):
    """A transformers model with its inputs by `names`, and of its outputs the tensors as a dict: no caches, no tuples.

    >>> Tensors(model, ("input_ids", "attention_mask"))(ids, mask)["logits"]
    """

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()

        def forward(*args: Tensor, **kwargs: Tensor) -> dict[str, Tensor]:
            outputs = model(**dict(zip(names, args, strict=False)), **kwargs)
            return {name: value for name, value in outputs.items() if isinstance(value, Tensor)}

        # Tracing asks for the names of the inputs, which are another model's every time.
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        forward.__signature__ = inspect.Signature([inspect.Parameter(n, kind) for n in names])  # type: ignore[attr-defined]
        self.model = model
        self.forward = forward


@dataclass(frozen=True)
class Graph:
    """What tracing gave: the program, names of its outputs, and of every input its dynamic dimensions with names."""

    program: torch.export.ExportedProgram
    outputs: tuple[str, ...]
    dims: dict[str, dict[int, str]]


def inputs_for(model: nn.Module, batch: int, length: int) -> dict[str, Tensor]:
    """Example inputs on the model's device and in its dtype; the other side of cross-attention is 3 tokens longer."""
    made = example_inputs(model, batch, length)
    longer = example_inputs(model, batch, length + 3)
    made |= {name: longer[name] for name in made if name.startswith(_SIDES)}
    parameter = next(model.parameters())
    return {n: t.to(parameter.device, parameter.dtype if t.is_floating_point() else None) for n, t in made.items()}


def trace(model: nn.Module) -> Graph:
    """The graph of `model` in evaluation mode. InputError when its code cannot be traced or fixes a dimension."""
    inputs = inputs_for(model, *_TRACED)
    dims = _dynamic(inputs, inputs_for(model, *_TRIED[1]))
    shapes = {name: dict.fromkeys(named, torch.export.Dim.DYNAMIC) for name, named in dims.items()}
    plain = Tensors(model, tuple(inputs))
    with frozen(model), _experts_at_once(model), torch.no_grad():
        outputs = tuple(plain(**inputs))
        try:
            program = torch.export.export(plain, (), inputs, dynamic_shapes=shapes)
        except Exception as error:  # whatever the model's own code raises when it is given symbols
            raise InputError(f"{type(model).__name__} cannot be exported: {_first_line(error)}") from error
    return Graph(program, outputs, dims)


@contextmanager
def _experts_at_once(model: nn.Module) -> Iterator[None]:
    """Let routed experts compute by products of all at once: loops over those that were chosen cannot be traced."""
    own = [(module, module.config) for module in model.modules() if hasattr(module, "_apply_gate")]
    try:
        for module, _ in own:
            module.config = LayerConfig(module.config)
            module.config._experts_implementation = "batched_mm"
        yield
    finally:
        for module, config in own:
            module.config = config


def trials(model: nn.Module) -> Iterator[tuple[str, dict[str, Tensor], dict[str, Tensor]]]:
    """What a graph is tried with: a name, inputs of another batch and length than traced, and the model's outputs."""
    for batch, length in _TRIED:
        inputs = inputs_for(model, batch, length)
        with frozen(model), torch.no_grad():
            expected = Tensors(model, tuple(inputs))(**inputs)
        shape = next(iter(inputs.values())).shape[1]
        yield f"batch {batch}" + (f", length {shape}" if "input_ids" in inputs else ""), inputs, expected


def _dynamic(first: dict[str, Tensor], second: dict[str, Tensor]) -> dict[str, dict[int, str]]:
    """The dimensions that differ between inputs of two batches and lengths."""
    found: dict[str, dict[int, str]] = {}
    for name, tensor in first.items():
        side = next((side for side in _SIDES if name.startswith(side)), "")
        names = ("batch", f"{side}length")
        found[name] = {d: names[d] for d in range(2) if tensor.shape[d] != second[name].shape[d]}
    return found


def _first_line(error: Any) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0]
