"""Plain `nn.Sequential` networks, VGG for example: channels and neurons between one layer and the next.

There is no config and no loader: a pruned network is saved whole, by `torch.save`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from pyprune.capture.masking import masked
from pyprune.core.anatomy import Anatomy, Block
from pyprune.core.errors import InputError
from pyprune.core.plan import Plan
from pyprune.core.units import ASKED_AXES, Cut, UnitCost, UnitGroup
from pyprune.slicing.check import max_difference
from pyprune.slicing.slice import slice_

# What acts on every channel alone. A mask acts behind it, so it need not map zero to zero.
_CHANNELWISE = (
    *(nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Mish, nn.ELU, nn.LeakyReLU),
    *(nn.Tanh, nn.Sigmoid, nn.Hardswish, nn.Softplus),
    *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d),
    *(nn.Dropout, nn.Dropout2d, nn.Identity),
)
_NORM_TENSORS = ("weight", "bias", "running_mean", "running_var")
_ALLOWED = 1e-9  # float64, relative to the largest output


class SequentialAdapter:
    """Implements `core.anatomy.Adapter` for a network that was shown an input (`discover_sequential_`)."""

    def anatomy(self, model: Any, axes: Sequence[str] | None = None) -> Anatomy:
        """Groups between a convolution or linear layer and the next, of which every unit is free."""
        if unknown := [axis for axis in axes or () if axis in ASKED_AXES]:
            raise InputError(f"axis {unknown[0]!r}: a Sequential has channels and neurons")
        leaves = dict(_leaves(model))
        blocks = [block for path in leaves if (block := _block(leaves, path, model.positions)) is not None]
        if not blocks:
            raise InputError("Sequential: no channels or neurons between two of its layers; nothing can be pruned")
        # A layer between two groups is cut on both sides: each of them counts half of it.
        makers = {block.units.name.rpartition(".")[0]: block.units.name for block in blocks}
        readers = {block.projection: block.units.name for block in blocks}
        shared = [_shared(block, leaves, makers, readers, model.positions) for block in blocks]
        return Anatomy("sequential", (), tuple(shared))

    def resized(self, model: nn.Module, anatomy: Anatomy, kept: Mapping[str, torch.Tensor]) -> None:
        """Layers know their shapes from their tensors; there is nothing else to tell."""


@torch.no_grad()
def discover_sequential_(model: nn.Sequential, inputs: Mapping[str, torch.Tensor]) -> str:
    """Note how many positions every layer sees, in `model.positions`, and prove masked = sliced on `inputs`.

    Returns one line of what was found; InputError when there is nothing to prune, or when the proof fails.
    """
    positions: dict[str, int] = {}
    twin = copy.deepcopy(model).double().eval()
    leaves = dict(_leaves(twin))
    first: dict[int, str] = {}
    for path, layer in leaves.items():
        if any(True for _ in layer.parameters()) and first.setdefault(id(layer), path) != path:
            raise InputError(f"Sequential: {path} is the same layer as {first[id(layer)]}; copy it before pruning")

    def note(path: str) -> Any:
        def hook(layer: nn.Module, args: Any, output: torch.Tensor) -> None:
            positions[path] = output.shape[2:].numel() if output.dim() == 4 else output.shape[1:-1].numel()

        return hook

    handles = [layer.register_forward_hook(note(path)) for path, layer in leaves.items()]
    images = {name: tensor.double() for name, tensor in inputs.items()}
    try:
        twin(**images)
    except (RuntimeError, ValueError, TypeError) as error:
        raise InputError(f"Sequential: cannot be run on these inputs ({str(error).splitlines()[0]})") from error
    finally:
        for handle in handles:
            handle.remove()
    twin.positions = positions
    adapter = SequentialAdapter()
    anatomy = adapter.anatomy(twin)
    for block in anatomy.blocks:
        plan = Plan.keep_all(anatomy)
        plan.kept[block.units.name] = torch.arange(block.units.size - max(block.units.size // 2, 1), block.units.size)
        with masked(twin, anatomy, plan):
            expected = twin(**images)
        found = slice_(copy.deepcopy(twin), adapter, plan)(**images)
        if not max_difference([expected], [found]) <= _ALLOWED * max(1.0, float(expected.abs().max())):
            raise InputError(f"Sequential: {block.projection} does not fit, its inputs are not {block.units.name}")
    model.positions = positions
    axes = [group.axis for group in anatomy.groups]
    counts = ", ".join(f"{axes.count(axis)} x {axis}" for axis in dict.fromkeys(axes))
    return f"discovered: {counts}; proved on {', '.join(f'{k} {list(v.shape)}' for k, v in inputs.items())}"


def _leaves(model: nn.Sequential, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Layers in the order of the data, those of Sequentials inside included."""
    for name, layer in model._modules.items():
        if isinstance(layer, nn.Sequential):
            yield from _leaves(layer, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", layer


def _block(leaves: Mapping[str, nn.Module], maker: str, positions: Mapping[str, int]) -> Block | None:
    """The units between `maker` and the next layer that mixes them; None when there are none, or they are not free."""
    first = leaves[maker]
    if not isinstance(first, (nn.Conv2d, nn.Linear)) or getattr(first, "groups", 1) != 1:
        return None
    convolution = isinstance(first, nn.Conv2d)
    size = first.weight.shape[0]
    cuts, flat = _outputs(maker, first), not convolution
    paths = list(leaves)
    for path in paths[paths.index(maker) + 1 :]:
        layer = leaves[path]
        depthwise = isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels == layer.out_channels > 1
        if isinstance(layer, nn.Flatten) and layer.start_dim == 1 and layer.end_dim == -1:
            flat = True
        elif isinstance(layer, nn.BatchNorm2d) or depthwise:
            cuts += _outputs(path, layer)
        elif not isinstance(layer, _CHANNELWISE):
            break
    else:
        return None
    reads = isinstance(layer, nn.Linear) if flat else isinstance(layer, nn.Conv2d) and layer.groups == 1
    if not reads or layer.weight.shape[1] % size:
        return None
    width = layer.weight.shape[1] // size
    axis = "channels" if convolution else "neurons"
    reading = Cut(f"{path}.weight", 1, width)
    makers = [leaves[cut.module] for cut in cuts if cut.tensor.endswith(".weight")]
    made = sum(maker_.weight[0].numel() for maker_ in makers if maker_.weight.dim() > 1)
    group = UnitGroup(
        name=f"{maker}.{axis}",
        axis=axis,
        layer=paths.index(maker),
        size=size,
        width=width,
        cuts=(*cuts, reading),
        cost=UnitCost(
            params=made + width * layer.weight[:, 0].numel(),
            key_params=made,
            tokens=positions[path],
            keys=positions[maker],
        ),
        least=1 if convolution else 0,
    )
    return Block("", path, (), None, group, "projection" if flat else "convolution")


def _outputs(path: str, layer: nn.Module) -> tuple[Cut, ...]:
    return tuple(Cut(f"{path}.{name}", 0) for name in _NORM_TENSORS if getattr(layer, name, None) is not None)


def _shared(
    block: Block,
    leaves: Mapping[str, nn.Module],
    makers: Mapping[str, str],
    readers: Mapping[str, str],
    positions: Mapping[str, int],
) -> Block:
    """The block with half the weights of layers that another group cuts on their other side."""
    cost, maker = block.units.cost, block.units.name.rpartition(".")[0]
    shared = []
    made, read = cost.key_params, cost.params - cost.key_params
    if maker in readers:
        half = leaves[maker].weight[0].numel() / 2
        shared.append((readers[maker], half, float(positions[maker])))
        made -= half
    if block.projection in makers:
        half = read / 2
        shared.append((makers[block.projection], half, float(positions[block.projection])))
        read -= half
    cost = replace(cost, params=made + read, key_params=made, shared=tuple(shared))
    return replace(block, units=replace(block.units, cost=cost))
