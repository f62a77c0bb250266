"""Where in a model a layer stands: what the tables of a family are applied to."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from pyprune.core.anatomy import Cut
from pyprune.core.layers import output_dim


@dataclass(frozen=True)
class Place:
    """One layer of one stack: the module, its dotted path from the model's root, and what its groups are called.

    `index` counts the layers of the stack. `tokens` and `keys` are as in `core.anatomy.UnitCost`; `source_tokens` are
    the keys of cross-attention. `pair` says that the layer returns the hidden state and None.
    """

    layer: nn.Module
    path: str
    name: str
    index: int
    tokens: float | None = None
    keys: float | None = None
    source_tokens: float | None = None
    pair: bool = False

    def below(self, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        """Paths from the root of modules that are named from the layer on; None stays None."""
        return None if names is None else tuple(f"{self.path}.{name}" for name in names)

    def outputs(self, name: str, width: int, **places: int) -> tuple[Cut, ...]:
        """Cuts along the outputs of the linear layer `name`: its weight, and its bias if it has one."""
        module, path = self.layer.get_submodule(name), f"{self.path}.{name}"
        weight = Cut(f"{path}.weight", output_dim(module), width, **places)
        return (weight,) if module.bias is None else (weight, Cut(f"{path}.bias", 0, width, **places))

    def inputs(self, name: str, width: int, **places: int) -> tuple[Cut, ...]:
        """The cut along the inputs of the linear layer `name`."""
        return (Cut(f"{self.path}.{name}.weight", 1 - output_dim(self.layer.get_submodule(name)), width, **places),)

    def unit_params(self, cuts: tuple[Cut, ...]) -> int:
        """Weights of one unit over all matrices among `cuts`; biases are not counted."""
        total = 0
        for cut in cuts:
            path, _, leaf = cut.tensor.removeprefix(f"{self.path}.").rpartition(".")
            tensor = getattr(self.layer.get_submodule(path), leaf)
            if tensor.dim() > 1:
                total += cut.entries * (tensor.shape[: cut.dim] + tensor.shape[cut.dim + 1 :]).numel()
        return total
