"""The hidden width: one vector through embeddings, norms, projections and heads, whose entries are kept or removed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

from pyprune.core.anatomy import Anatomy, HiddenGroup
from pyprune.core.errors import InputError
from pyprune.core.layers import is_linear, output_dim
from pyprune.core.units import Cut, UnitCost, UnitGroup
from pyprune.models.widths import PRUNED_GROUPS

HIDDEN = "hidden"


def hidden_group(model: Any, anatomy: Anatomy, size: int | None = None) -> HiddenGroup:
    """The hidden width of `model`, whose blocks are those of `anatomy`.

    Of a tensor that a block cuts, it is the dimension that the block leaves alone; of any other, the dimensions that
    its module's type says, if they have this size. `size` None is the width that the model has now. A given one is that
    of a dense model under construction, parts of which may be cut already.

    InputError when it is not clear which dimensions are meant, or when a width is read where nothing can be cut.
    """
    width = current_width(model.config) if size is None else size
    _check(model, anatomy, width, strict=size is None)
    blocks = _cuts_of_blocks(model, anatomy, width, strict=size is None)
    inside = {cut.module for block in anatomy.blocks for cut in block.cuts}
    layers = tuple(f"{path}." for path in anatomy.layers)
    cuts, norms, seen = list(blocks), [], set()
    for path, module in model.named_modules():
        name = f"{path}." if path else ""
        if path in inside:
            seen |= {id(tensor) for tensor in module._parameters.values()}
            continue
        if _is_norm(module) and _norm_width(module) == width:
            norms.append(path)
        found = {leaf: t for leaf, t in module._parameters.items() if t is not None and id(t) not in seen}
        seen |= {id(tensor) for tensor in found.values()}
        if found and path.startswith(layers) and (is_linear(module) or isinstance(module, _ConvNd)):
            raise _refused(model, f"{path} is part of no block")
        for leaf, tensor in found.items():
            for dim in _dims(model, path, module, leaf, width):
                if tensor.shape[dim] == width:
                    cuts.append(Cut(name + leaf, dim % tensor.dim()))
    group = UnitGroup(HIDDEN, HIDDEN, 0, width, 1, tuple(cuts), UnitCost(0), least=1)
    return HiddenGroup(group, tuple(norms))


def current_width(config: Any) -> int:
    """The width that a model of this config has, pruned or not."""
    return (vars(config).get(PRUNED_GROUPS) or {}).get(HIDDEN, config.hidden_size)


def _check(model: Any, anatomy: Anatomy, width: int, strict: bool) -> None:
    config = model.config
    head_sizes = {cut.width for block in anatomy.blocks if block.units.axis != "neurons" for cut in block.cuts}
    alike = [name for name in ("vocab_size", "num_labels") if getattr(config, name, None) == width]
    # Heads that were cut may have come to the dense width: that a model can be rebuilt was checked when it was whole.
    if alike or (strict and width in head_sizes):
        raise _refused(model, f"{alike[0] if alike else 'the size of a head'} is the hidden width too")
    if any(block.site not in ("projection", "weights") for block in anatomy.blocks):
        raise _refused(model, "it has routed experts")
    source = any("cross" in block.units.name for block in anatomy.blocks)
    if source and not getattr(config, "is_encoder_decoder", False):
        raise _refused(model, "its cross-attention reads another model's hidden states")


def _cuts_of_blocks(model: Any, anatomy: Anatomy, width: int, strict: bool) -> Iterator[Cut]:
    taken: dict[str, set[int]] = {}
    for block in anatomy.blocks:
        for cut in block.cuts:
            taken.setdefault(cut.tensor, set()).add(cut.dim)
    for name, dims in taken.items():
        shape = model.get_parameter(name).shape
        left = [dim for dim in range(len(shape)) if dim not in dims and shape[dim] == width]
        if strict and len(shape) == 2 and len(left) != 1:
            raise _refused(model, f"{name} does not have it")
        yield from (Cut(name, dim) for dim in left)
    for block in anatomy.blocks:
        bias = model.get_submodule(block.projection).bias
        if bias is not None and len(bias) == width:
            yield Cut(f"{block.projection}.bias", 0)


def _dims(model: Any, path: str, module: Any, leaf: str, width: int) -> tuple[int, ...]:
    """Dimensions of a parameter that may be the hidden width."""
    if is_linear(module):
        if leaf == "bias":
            return (0,)
        inputs = 1 - output_dim(module)
        if module.weight.shape[inputs] % width == 0 and module.weight.shape[inputs] > width:
            raise _refused(model, f"{path} may read several hidden states side by side")
        return (inputs,) if module is model.get_output_embeddings() else (0, 1)
    if isinstance(module, _ConvNd):
        if module.groups != 1:
            raise _refused(model, f"{path} is a convolution in groups")
        return (0,) if leaf == "bias" else (0, 1)
    if isinstance(module, nn.Embedding):
        return (1,)
    if not _is_norm(module) and type(module).__module__.startswith("torch.nn"):
        raise _refused(model, f"{path} is a {type(module).__name__}")
    return (-1,)


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.LayerNorm) or type(module).__name__.endswith(("RMSNorm", "LayerNorm"))


def _norm_width(module: nn.Module) -> int:
    """The number of channels that a norm takes; -1 when it does not say."""
    if isinstance(module, nn.LayerNorm):
        return math.prod(module.normalized_shape)
    weight = module._parameters.get("weight")
    return -1 if weight is None else len(weight)


def _refused(model: Any, reason: str) -> InputError:
    return InputError(f"axis {HIDDEN!r} of {type(model).__name__}: {reason}")
