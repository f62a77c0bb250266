"""Linear layers under one reading, whichever way round they store their weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def is_linear(layer: nn.Module) -> bool:
    """Whether the layer is a `Linear`, or transformers' `Conv1D`."""
    return isinstance(layer, nn.Linear) or hasattr(layer, "nf")


def output_dim(layer: nn.Module) -> int:
    """Dimension of the weight along which outputs lie: 0, but 1 for transformers' `Conv1D`, a transposed `Linear`."""
    return 1 if hasattr(layer, "nf") else 0


def matrix(layer: Any) -> torch.Tensor:
    """The weight of a linear layer as `[outputs, inputs]`; a view, so that writing to it writes to the layer."""
    return layer.weight.T if output_dim(layer) else layer.weight
