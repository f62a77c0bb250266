"""Where in a model a layer stands: what the tables of a family are applied to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from pyprune.core.layers import output_dim
from pyprune.core.units import Cut


@dataclass(frozen=True)
class Place:
    """One layer of one stack: the module, its dotted path from the model's root, and what its groups are called.

    `index` counts the layers of the stack. `tokens`, `keys` and `extra_tokens` are as in `core.units.UnitCost`;
    `source_tokens` are the keys of cross-attention, 0 where the model runs without a source, and `query_tokens` the
    tokens of an attention that pads them to whole windows. `pair` says that the layer returns the hidden state and
    None. `asked` are the axes of `core.units.ASKED_AXES` that the anatomy is asked for.
    """

    layer: nn.Module
    path: str
    name: str
    index: int
    tokens: float | None = None
    keys: float | None = None
    source_tokens: float | None = None
    query_tokens: float | None = None
    extra_tokens: float | None = None
    pair: bool = False
    asked: tuple[str, ...] = ()

    @property
    def stack(self) -> str:
        """What the names of all layers of the stack begin with."""
        return self.name.rpartition("layers.")[0]

    def token_counts(self, padded: bool = False) -> dict[str, float | None]:
        """How many tokens pass the layer, or with `padded` its attention, for a `UnitCost`."""
        tokens = self.query_tokens if padded and self.query_tokens is not None else self.tokens
        return {"tokens": tokens, "extra_tokens": self.extra_tokens or 0.0}

    def below(self, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        """Paths from the root of modules that are named from the layer on; None stays None."""
        return None if names is None else tuple(f"{self.path}.{name}" for name in names)

    def having(self, names: tuple[str, ...]) -> Iterator[str]:
        """Those of `names` that lead to a module of the layer."""
        for name in names:
            owner, _, leaf = name.rpartition(".")
            if hasattr(self.layer.get_submodule(owner), leaf):
                yield name

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
