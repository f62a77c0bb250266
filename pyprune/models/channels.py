"""The table of channels between two convolutions, with what lies on their way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from pyprune.core.anatomy import Block
from pyprune.core.units import Cut, UnitCost, UnitGroup
from pyprune.models.family import Part
from pyprune.models.place import Place


@dataclass(frozen=True)
class Channels(Part):
    """Channels inside a residual block, which nobody but its own layers reads. All paths start at the layer.

    `inner` are the layers on their way, in order: the convolution (or linear layer) that makes them, its batch norm,
    depthwise convolutions. `output` reads them: the next convolution, or a linear layer. `name` ends the group's name.
    The tokens of the place are positions at the layer's output, its keys those at the input, which the channels have
    where `output` strides.

    `before` and `after` are the `name`s of the groups of the layer that cut the weights of the first of `inner` and of
    `output` along their other side: each group counts half of these.

    Convolutions without channels do not run, so one stays; linear layers do.
    """

    inner: tuple[str, ...]
    output: str
    name: str = "channels"
    before: str = ""
    after: str = ""
    when: Callable[[nn.Module], bool] | None = None

    def block(self, place: Place) -> Block:
        """The block of the layer at `place`."""
        output = place.layer.get_submodule(self.output)
        convolution = isinstance(output, nn.Conv2d)
        strided = convolution and max(output.stride) > 1
        made_at = place.keys if strided else place.tokens
        inner = tuple(cut for name in self.inner for cut in _along(place, name))
        reading = place.inputs(self.output, 1)
        first = place.outputs(self.inner[0], 1)
        shared, halves = [], {True: 0, False: 0}
        for other, cuts, tokens, made in (
            (self.before, first, made_at, True),
            (self.after, reading, place.tokens, False),
        ):
            if other:
                half = place.unit_params(cuts) / 2
                shared.append((f"{place.name}.{other}", half, tokens))
                halves[made] = half
        made_params = place.unit_params(inner) - halves[True]
        group = UnitGroup(
            name=f"{place.name}.{self.name}",
            axis="channels",
            layer=place.index,
            size=output.weight.shape[1],
            width=1,
            cuts=(*inner, *reading),
            cost=UnitCost(
                params=made_params + place.unit_params(reading) - halves[False],
                key_params=made_params,
                tokens=place.tokens,
                keys=made_at,
                shared=tuple(shared),
            ),
            least=1 if convolution else 0,
        )
        site = "convolution" if convolution else "projection"
        return Block(place.path, f"{place.path}.{self.output}", (), None, group, site)


def _along(place: Place, name: str) -> tuple[Cut, ...]:
    """Cuts of a layer with one entry for each channel: of a norm its running statistics too."""
    module, path = place.layer.get_submodule(name), f"{place.path}.{name}"
    if not isinstance(module, nn.BatchNorm2d):
        return place.outputs(name, 1)
    tensors = ("weight", "bias", "running_mean", "running_var")
    return tuple(Cut(f"{path}.{tensor}", 0) for tensor in tensors if getattr(module, tensor) is not None)
