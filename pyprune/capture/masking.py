"""Masks on projections, convolutions, experts, layers, width, tokens and vocabulary, while a `with` block lasts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from pyprune.capture.token_masks import forward_replaced, mask_tokens
from pyprune.core.anatomy import Anatomy, Block, HiddenGroup, VocabularyGroup
from pyprune.core.errors import InputError
from pyprune.core.plan import Plan


@contextmanager
def masked(model: nn.Module, anatomy: Anatomy, masks: Plan | Mapping[str, torch.Tensor]) -> Iterator[nn.Module]:
    """Multiply each unit's channels by its mask while the context lasts; the weights stay as they are.

    `masks` is a plan (kept units 1, removed units 0) or a mapping from group names to `[size]` tensors of any real
    values; groups that are not named stay dense. An expert of mask 0 is not among those that the router chooses from.
    What a layer adds to the hidden state is multiplied by its mask: one of mask 0 hands on what it was given. Those
    of the hidden width are 1 or 0: norms see the entries that are there, as if there had never been others. Those of
    tokens too: one of mask 0 is no key for any other from that layer on, and does not come out of the last. And those
    of the vocabulary: the model refuses removed tokens with an InputError, and their logits are -inf.
    The hooks are gone afterwards, also after an exception. Raises MismatchError for a plan of another model, InputError
    for masks of unknown groups or other sizes.
    """
    if isinstance(masks, Plan):
        masks.check(anatomy)
        masks = {name: masks.mask(name) for name in masks.kept}
    groups = {g.name: g for g in anatomy.groups}
    for name, mask in masks.items():
        size = groups[name].size if name in groups else "no"
        if mask.shape != (size,):
            raise InputError(f"mask of {name}: {list(mask.shape)}, the model has {size} units")
        if int((mask != 0).sum()) < groups[name].least:
            raise InputError(f"mask of {name}: fewer than {groups[name].least} units are not 0")
    with ExitStack() as stack:
        for block in anatomy.blocks:
            if block.units.name in masks:
                _SITES[block.site](stack, model, block, masks[block.units.name])
        for group in anatomy.layer_groups:
            if group.units.name in masks:
                for path, mask in zip(group.layers, masks[group.units.name].unbind(), strict=True):
                    if mask != 1 or mask.requires_grad:
                        _mask_layer(stack, model.get_submodule(path), mask)
        for hidden in anatomy.widths:
            if hidden.units.name in masks:
                _mask_hidden(stack, model, hidden, masks[hidden.units.name])
        if anatomy.vocabulary and anatomy.vocabulary.units.name in masks:
            _mask_vocabulary(stack, model, anatomy.vocabulary, masks[anatomy.vocabulary.units.name])
        mask_tokens(stack, model, anatomy, masks)
        yield model


def _mask_vocabulary(stack: ExitStack, model: nn.Module, vocabulary: VocabularyGroup, mask: torch.Tensor) -> None:
    """Removed tokens are neither read nor predicted."""
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise InputError(f"mask of {vocabulary.units.name}: every entry must be 0 or 1; a token is there or not")
    gone = mask == 0

    def look(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        if (removed := args[0][gone.to(args[0].device)[args[0]]]).numel():
            raise InputError(
                f"mask of {vocabulary.units.name}: the input has token {int(removed[0])}, which is removed"
            )

    def forbid(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        for name, logits in output.items() if hasattr(output, "items") else ():
            if isinstance(logits, torch.Tensor) and name.endswith("logits") and logits.shape[-1] == len(mask):
                output[name] = logits.masked_fill(gone.to(logits.device), -torch.inf)
        return output

    for path in vocabulary.embeddings:
        stack.callback(model.get_submodule(path).register_forward_pre_hook(look).remove)
    stack.callback(model.register_forward_hook(forbid).remove)


def _mask_hidden(stack: ExitStack, model: nn.Module, hidden: HiddenGroup, mask: torch.Tensor) -> None:
    """Zeros for all that writes or reads the removed entries, and norms that see the others alone."""
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise InputError(f"mask of {hidden.units.name}: every entry must be 0 or 1, since norms count them")
    norms = set(hidden.norms)
    changed: dict[int, torch.Tensor] = {}
    for cut in hidden.units.cuts:
        tensor = model.get_submodule(cut.module)._parameters.get(cut.tensor.rpartition(".")[2])
        if tensor is not None and cut.module not in norms:  # running statistics are no parameters, and need no mask
            factors = mask.to(tensor).view(-1, *[1] * (tensor.dim() - cut.dim - 1))
            changed[id(tensor)] = changed.get(id(tensor), tensor.detach()) * factors
    for module in model.modules():
        for name, tensor in list(module._parameters.items()):
            if id(tensor) in changed:  # also where it is tied
                stack.callback(module._parameters.__setitem__, name, tensor)
                module._parameters[name] = nn.Parameter(changed[id(tensor)], requires_grad=False)
    kept = mask.nonzero()[:, 0]
    for path in hidden.norms:
        stack.enter_context(forward_replaced(model.get_submodule(path), _norm_of(model.get_submodule(path), kept)))


def _norm_of(norm: Any, kept: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """The forward of `norm` over the `kept` channels, and zeros for the others."""
    small = copy.copy(norm)
    parameters = {name: t if t is None else nn.Parameter(t[kept.to(t.device)]) for name, t in norm._parameters.items()}
    vars(small)["_parameters"] = parameters
    if hasattr(norm, "normalized_shape"):
        small.normalized_shape = (len(kept),)
    dim = 1 if getattr(norm, "data_format", "") == "channels_first" else -1

    def forward(x: torch.Tensor) -> torch.Tensor:
        index = kept.to(x.device)
        return torch.zeros_like(x).index_copy(dim, index, small(x.index_select(dim, index)))

    return forward


def _mask_layer(stack: ExitStack, layer: nn.Module, mask: torch.Tensor) -> None:
    """Multiply what `layer` adds to the hidden state; what else it returns goes on as it is (position biases)."""

    def hand_on(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        entered = args[0] if args else kwargs["hidden_states"]
        left = output if isinstance(output, torch.Tensor) else output[0]
        # Not by a product with 0: a layer that is left out may overflow.
        left = entered + mask.to(left) * (left - entered) if mask else entered
        return left if isinstance(output, torch.Tensor) else (left, *output[1:])

    stack.callback(layer.register_forward_hook(hand_on, with_kwargs=True).remove)


def _mask_input(stack: ExitStack, model: nn.Module, block: Block, mask: torch.Tensor) -> None:
    channels = mask.repeat_interleave(block.units.width)
    if block.site == "convolution":
        channels = channels[:, None, None]

    def multiply(_: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        x, *rest = args
        return (x * channels.to(device=x.device, dtype=x.dtype), *rest)

    stack.callback(model.get_submodule(block.projection).register_forward_pre_hook(multiply).remove)


def _mask_tensor(stack: ExitStack, model: nn.Module, block: Block, mask: torch.Tensor) -> None:
    path, _, name = block.projection.rpartition(".")
    (cut,) = (cut for cut in block.units.cuts if cut.tensor == block.projection)

    _replace(stack, model.get_submodule(path), name, lambda tensor: tensor * cut.factors(mask, tensor))


def _mask_weights(stack: ExitStack, model: nn.Module, block: Block, mask: torch.Tensor) -> None:
    if block.norms and not bool(((mask == 0) | (mask == 1)).all()):
        raise InputError(f"mask of {block.units.name}: every unit must be 0 or 1, since norms count them")
    for cut in block.masked:
        path, _, name = cut.tensor.rpartition(".")
        _replace(stack, model.get_submodule(path), name, lambda tensor, cut=cut: tensor * cut.factors(mask, tensor))
    for cut in block.norms:
        norm = model.get_submodule(cut.module)
        kept = cut.positions(mask.cpu().nonzero()[:, 0]).flatten().sort().values
        stack.enter_context(forward_replaced(norm, _norm_of(norm, kept)))


def _mask_router(stack: ExitStack, model: nn.Module, block: Block, mask: torch.Tensor) -> None:
    router = model.get_submodule(block.projection)
    kept = mask.nonzero()[:, 0]

    def among_all(_: nn.Module, args: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        logits, weights, indices = output
        chosen = kept.to(indices.device)[indices]
        return logits, weights * mask.to(weights)[chosen], chosen

    # Without their rows, and not with logits of -inf, the router computes what it does after the cut, to the last bit.
    _replace(stack, router, "weight", lambda rows: rows[kept.to(rows.device)])
    for attribute in block.units.attributes:
        if attribute.module == block.projection:
            stack.callback(setattr, router, attribute.name, getattr(router, attribute.name))
            setattr(router, attribute.name, attribute.value(len(kept)))
    stack.callback(router.register_forward_hook(among_all).remove)


def _replace(stack: ExitStack, module: nn.Module, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Let `module` run with a changed parameter. It is made anew each time, so that only one layer's is held."""
    own: list[torch.Tensor] = []

    def put(_: nn.Module, args: tuple[Any, ...]) -> None:
        own.append(module._parameters[name])
        module._parameters[name] = change(own[-1])

    def put_back(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if own:
            module._parameters[name] = own.pop()

    stack.callback(module.register_forward_pre_hook(put).remove)
    # Before those that are there already: of several changes to one parameter the last is undone first.
    stack.callback(module.register_forward_hook(put_back, always_call=True, prepend=True).remove)


_SITES = {
    "projection": _mask_input,
    "convolution": _mask_input,
    "router": _mask_router,
    "tensor": _mask_tensor,
    "weights": _mask_weights,
}
