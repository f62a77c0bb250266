"""Running a model one block at a time over stored residual streams: a block can be refitted before the next runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from pyprune.capture.collect import frozen
from pyprune.capture.masking import forward_replaced
from pyprune.capture.outputs import body, repeatable
from pyprune.capture.taps import by_sample
from pyprune.core.anatomy import Anatomy, Block
from pyprune.core.batches import Batch
from pyprune.core.errors import MismatchError


class _Reached(Exception):
    """The projection's input `x` (and output `y`) was captured: the rest need not run."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor | None = None) -> None:
        super().__init__()
        self.x, self.y = x, y


@dataclass
class Call:
    """The arguments, besides the hidden state, with which the model called one layer (masks, position embeddings)."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@torch.no_grad()
def start(model: nn.Module, anatomy: Anatomy, batch: Batch) -> tuple[torch.Tensor, dict[str, Call]]:
    """The hidden state `[B, T, d]` that enters the first block, and every layer's call.

    The model's own forward runs with its layers replaced by identities that record how they were called: embeddings,
    masks and positions come out exactly as the family makes them, at next to no cost. Only for models all of whose
    blocks have an exit.
    """
    anatomy.need_projections("running block by block")
    calls: dict[str, Call] = {}
    entered: list[torch.Tensor] = []

    def record(path: str) -> Any:
        def identity(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            entered.append(hidden_states)
            calls[path] = Call(args, kwargs)
            return (hidden_states, None) if path in anatomy.pairs else hidden_states

        return identity

    with ExitStack() as stack:
        stack.enter_context(frozen(model))
        for path in anatomy.layers:
            stack.enter_context(forward_replaced(model.get_submodule(path), record(path)))
        with repeatable():
            body(model)(**batch.inputs)
    if set(calls) != set(anatomy.layers):
        raise MismatchError(f"the model did not call {sorted(set(anatomy.layers) - set(calls))}")
    return entered[0], calls


@dataclass
class Resumption:
    """What the next forward pass goes on from: the hidden state `[B, T, d]` of its batch; None: it is a whole one."""

    hidden: torch.Tensor | None = None


@contextmanager
def resumed(model: nn.Module, anatomy: Anatomy, layer: str) -> Iterator[Resumption]:
    """While it lasts forward passes begin at the layer at the path `layer`, with what is put into the `Resumption`.

    What runs in front of the layers, and tells them masks and positions, runs as ever. Only for models all of whose
    blocks have an exit, and whose output is made of what the last layer puts out.
    """
    given = Resumption()

    def handing_on(path: str) -> Any:
        own = model.get_submodule(path).forward

        def forward(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if given.hidden is None:
                return own(hidden_states, *args, **kwargs)
            return (given.hidden, None) if path in anatomy.pairs else given.hidden

        return forward

    with ExitStack() as stack:
        for path in anatomy.layers[: anatomy.layers.index(layer)]:
            stack.enter_context(forward_replaced(model.get_submodule(path), handing_on(path)))
        yield given


class SettledLayers:
    """What layers put out that will not change any more: they run once for every batch, whatever the family.

    A layer is left to run when one that is not settled was entered before it, on which it might depend. `take(bytes)`
    says whether so much more may be kept.
    """

    def __init__(self, model: nn.Module, anatomy: Anatomy, take: Callable[[int], bool]) -> None:
        self.model, self.take = model, take
        self.paths = [block.layer_path for block in anatomy.blocks]
        self.found: dict[tuple[str, int, int], Any] = {}
        self.batch = -1
        self.calls: Counter[str] = Counter()
        self.beyond = True

    def enter(self, batch: int) -> None:
        """The next forward pass is one of batch number `batch`."""
        self.batch, self.beyond = batch, False
        self.calls.clear()

    @contextmanager
    def before(self, block: int) -> Iterator[None]:
        """While it lasts, layers are settled all of whose blocks come before number `block`."""
        others = set(self.paths[block:])
        with ExitStack() as stack:
            for path in others:
                stack.callback(self.model.get_submodule(path).register_forward_pre_hook(self._passed).remove)
            for path in set(self.paths) - others:
                layer = self.model.get_submodule(path)
                stack.enter_context(forward_replaced(layer, partial(self._run, path, layer.forward)))
            yield
        self.beyond = True

    def _passed(self, *_: Any) -> None:
        self.beyond = True

    def _run(self, path: str, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self.beyond:
            return own(*args, **kwargs)
        key = path, self.batch, self.calls[path]
        self.calls[path] += 1
        if key not in self.found:
            output = own(*args, **kwargs)
            if not self.take(sum(t.nbytes for t in tensors_in(output))):
                return output
            self.found[key] = output
        return _copied(self.found[key])


def tensors_in(found: Any) -> Iterator[torch.Tensor]:
    """The tensors in nested dicts, lists and tuples."""
    if isinstance(found, torch.Tensor):
        yield found
    elif isinstance(found, (dict, list, tuple)):
        for one in found.values() if isinstance(found, dict) else found:
            yield from tensors_in(one)


def _copied(found: Any) -> Any:
    """What a layer put out, again: whoever reads it may change it in place."""
    if isinstance(found, torch.Tensor):
        return found.detach().clone()
    return tuple(map(_copied, found)) if type(found) is tuple else found


@torch.no_grad()
def context(model: nn.Module, block: Block, hidden: torch.Tensor, call: Call) -> torch.Tensor:
    """The input `[B, T, size * width]` of the block's output projection when `hidden` enters the block."""
    projection = model.get_submodule(block.projection)

    def stop(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        raise _Reached(args[0])

    handle = projection.register_forward_pre_hook(stop)
    try:
        if block.entry:
            for path in block.entry:
                hidden = model.get_submodule(path)(hidden)
            # The last entry module may end where the projection's input is ready, without calling the projection.
            return hidden
        model.get_submodule(block.layer_path)(hidden, *call.args, **call.kwargs)
    except _Reached as reached:
        return by_sample(reached.x, len(hidden))
    finally:
        handle.remove()
    raise MismatchError(f"{block.layer_path} ran without calling {block.projection}")


@torch.no_grad()
def reach(model: nn.Module, path: str, batch: Batch) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Input and output `[B, T, *]` of the linear layer at `path` in a forward pass that ends there.

    None when the model does not call it on such data (a decoder's cross-attention without a source).
    """
    layer = model.get_submodule(path)

    def stop(_: nn.Module, args: tuple[torch.Tensor, ...], y: torch.Tensor) -> None:
        raise _Reached(args[0], y)

    handle = layer.register_forward_hook(stop)
    try:
        with repeatable():
            model(**batch.inputs)
    except _Reached as reached:
        samples = len(batch.index)
        return by_sample(reached.x, samples), by_sample(reached.y, samples)
    finally:
        handle.remove()
    return None


@torch.no_grad()
def advance(model: nn.Module, block: Block, hidden: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The residual stream behind the block, and the hidden state that enters the next one; both `[B, T, d]`."""
    stream = hidden + model.get_submodule(block.projection)(x)
    after = stream
    for path in block.exit:
        after = model.get_submodule(path)(after)
    return stream, after
