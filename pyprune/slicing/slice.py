"""Cut a model to a plan: fewer channels in its tensors, nothing else touched."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from pyprune import ops
from pyprune.core.anatomy import Adapter, Anatomy
from pyprune.core.errors import InputError
from pyprune.core.layers import output_dim
from pyprune.core.plan import Plan

# New tensors are made for so many bytes of the old at a time: the dense model and this are all that is ever held.
_BYTES_AT_ONCE = 64 << 20

# What a module remembers of its weight's shape: names for each dimension in turn.
_SIZES: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Linear: ("out_features", "in_features"),
    nn.Embedding: ("num_embeddings", "embedding_dim"),
    nn.BatchNorm2d: ("num_features",),
}


def slice_(model: nn.Module, adapter: Adapter, plan: Plan) -> nn.Module:
    """Remove every unit that `plan` does not keep, in place, and return `model`.

    The result computes what the masked model computes: output biases, norms and the softmax scale stay. Layers that
    keep all their units keep their very parameters, and tied parameters stay tied. Raises MismatchError when the plan
    was made for another model, and InputError when a layer is not a plain one (quantised, or wrapped by an adapter
    library); the model is untouched in both cases. Old tensors are let go as new ones are made: running out of memory
    midway leaves a model that is of no use.

    >>> slice_(model, adapter_for(model), plan)
    """
    anatomy = adapter.anatomy(model, plan.axes)
    plan.check(anatomy)
    return cut_(model, adapter, anatomy, plan.kept)


def cut_(model: nn.Module, adapter: Adapter, anatomy: Anatomy, kept: Mapping[str, torch.Tensor]) -> nn.Module:
    """Slice `model` to the kept unit indices of every group of `anatomy`; `slice_` without the checks of a plan."""
    kept = anatomy.complete(kept)
    pieces = _pieces(model, anatomy, kept)
    for some in _batches(pieces):
        tensors = ops.gather_compact([p.matrix for p in some], [p.rows for p in some], [p.columns for p in some])
        for piece, tensor in zip(some, tensors, strict=True):
            piece.assign(tensor)
    adapter.resized(model, anatomy, kept)
    return model


@dataclass
class _Piece:
    """One tensor that loses entries, and everyone who holds it (more than one where weights are tied).

    `stay[dim]` are the indices that stay along a dimension, one or two of them. To `gather_compact` the tensor is a
    matrix (or a vector): the dimensions up to the first cut one are its rows, the others its columns.
    """

    name: str
    tensor: torch.Tensor
    owners: list[tuple[nn.Module, str]]
    stay: dict[int, torch.Tensor]

    @property
    def _split(self) -> int:
        dims = sorted(self.stay)
        return dims[0] + 1 if dims[0] == 0 or len(dims) > 1 else dims[0]

    @property
    def matrix(self) -> torch.Tensor:
        tensor = self.tensor.detach()
        return tensor if tensor.dim() <= 2 else tensor.flatten(self._split).flatten(0, self._split - 1)

    @property
    def rows(self) -> torch.Tensor | None:
        return self._indices(range(self._split))

    @property
    def columns(self) -> torch.Tensor | None:
        return self._indices(range(self._split, self.tensor.dim()))

    def _indices(self, dims: range) -> torch.Tensor | None:
        """Indices into the flattened dimensions `dims`, of which at most one is cut."""
        cut = next((d for d in dims if d in self.stay), None)
        if cut is None:
            return None
        shape, stay = self.tensor.shape, self.stay[cut]
        outer = torch.arange(shape[dims.start : cut].numel(), device=stay.device)[:, None, None]
        inner = torch.arange(shape[cut + 1 : dims.stop].numel(), device=stay.device)
        return ((outer * shape[cut] + stay[:, None]) * len(inner) + inner).flatten()

    def assign(self, matrix: torch.Tensor) -> None:
        shape = [len(self.stay[d]) if d in self.stay else size for d, size in enumerate(self.tensor.shape)]
        new = matrix.view(shape)
        if isinstance(self.tensor, nn.Parameter):
            new = nn.Parameter(new, requires_grad=self.tensor.requires_grad)
        for module, name in self.owners:
            setattr(module, name, new)
            if name == "weight":
                _remember_shape(module)
        self.tensor = new


def _pieces(model: nn.Module, anatomy: Anatomy, kept: Mapping[str, torch.Tensor]) -> list[_Piece]:
    """Every tensor that is cut, checked. Indices live on the CPU, also while transformers builds a model on "meta"."""
    stay: dict[str, dict[int, torch.Tensor]] = {}
    for group in anatomy.all_groups:
        if len(kept[group.name]) == group.size:
            continue
        gone = torch.ones(group.size, dtype=torch.bool, device="cpu")
        gone[kept[group.name]] = False
        for cut in group.cuts:
            size = _tensor(model, cut.tensor).shape[cut.dim]
            masks = stay.setdefault(cut.tensor, {})
            mask = masks.setdefault(cut.dim, torch.ones(size, dtype=torch.bool, device="cpu"))
            mask[cut.positions(gone.nonzero()[:, 0]).flatten()] = False
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, tensor in itertools.chain(module._parameters.items(), module._buffers.items()):
            owners.setdefault(id(tensor), []).append((module, name))
    tensors = {name: _tensor(model, name) for name in stay}
    return [
        _Piece(name, tensor, owners[id(tensor)], {d: mask.nonzero()[:, 0] for d, mask in stay[name].items()})
        for name, tensor in tensors.items()
    ]


def _tensor(model: nn.Module, name: str) -> torch.Tensor:
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    tensor = module._parameters.get(leaf, module._buffers.get(leaf))
    # Modelling code may have a class of its own for a plain linear layer; quantisers and adapters live elsewhere.
    plain = type(module) is nn.Linear or type(module).__module__.startswith("transformers.models.")
    if tensor is None or (isinstance(module, nn.Linear) and not plain):
        raise InputError(
            f"{path} is a {type(module).__module__}.{type(module).__name__}, not a plain layer: "
            "prune before quantising, and merge adapters first"
        )
    return tensor


def _batches(pieces: list[_Piece]) -> Iterator[list[_Piece]]:
    """Pieces of one device, together at most `_BYTES_AT_ONCE` (or one piece)."""
    for device in {p.tensor.device: None for p in pieces}:
        some: list[_Piece] = []
        for piece in (p for p in pieces if p.tensor.device == device):
            if some and sum(p.tensor.nbytes for p in some) + piece.tensor.nbytes > _BYTES_AT_ONCE:
                yield some
                some = []
            some.append(piece)
        if some:
            yield some


def _remember_shape(module: Any) -> None:
    for kind, names in _SIZES.items():
        if isinstance(module, kind):
            for name, size in zip(names, cast(torch.Tensor, module.weight).shape, strict=False):
                setattr(module, name, size)
    if isinstance(module, (nn.Conv1d, nn.Conv2d)):
        outputs, inputs_per_group = module.weight.shape[:2]
        if module.groups > 1 and module.groups == module.out_channels:  # depthwise: a channel is a group
            module.groups = outputs
        module.out_channels, module.in_channels = outputs, inputs_per_group * module.groups
    if output_dim(module) == 1:  # transformers' Conv1D
        module.nx, module.nf = module.weight.shape
