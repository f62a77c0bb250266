"""What removing each unit changes, estimated for all units at once from backward passes of random probes.

The derivative of the Gram matrices along a unit's mask, squared and summed, is its trajectory distance to second order.
A probe with random signs (`ops.gram_probe_grad`) at the features of all layers, sent backwards, gives every mask a
number whose square is that on average; each sample's own square, where samples have Gram matrices of their own.
The divergence of answers is half a sum of squares in the same way: of as many backward passes as there are classes,
exactly, or of random ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace

import torch
from torch import nn

from pyprune.capture.collect import frozen, loss_scale
from pyprune.capture.mask_taps import mask_taps
from pyprune.capture.outputs import repeatable, run
from pyprune.capture.taps import by_sample, need_reached
from pyprune.capture.trajectory import (
    Answer,
    Removal,
    answer_of,
    features,
    first_later,
    information_probe,
    information_roots,
    key,
    layer_number,
    points,
)
from pyprune.core.anatomy import Anatomy, Block
from pyprune.core.batches import Batch
from pyprune.core.errors import InputError, NumericsError
from pyprune.ops import gram_probe_grad, prod_reduce

# Classes up to which the divergence of answers takes a backward pass each instead of random ones.
MOST_CLASSES = 32


class _Mean:
    """Mean and standard error of draws `[size]`, which are added up over parts of the data."""

    def __init__(self, size: int) -> None:
        self.mean = torch.zeros(size, dtype=torch.float64)
        self.variance = torch.zeros(size, dtype=torch.float64)

    def add(self, draws: torch.Tensor) -> None:
        """`draws` `[n, size]` of one part."""
        self.mean += draws.mean(0)
        # One draw says nothing of its own error: that of a squared normal number is its mean times sqrt(2).
        self.variance += draws.var(0) / len(draws) if len(draws) > 1 else 2 * draws[0].square()


def probe(
    model: nn.Module,
    anatomy: Anatomy,
    batches: Iterable[Batch],
    groups: Iterable[str],
    probes: int,
    seed: int = 0,
    joint: bool = False,
    causal: bool = False,
    most_classes: int = MOST_CLASSES,
) -> Removal:
    """What removing each unit of `groups` changes, to second order, from `probes` backward passes; with errors.

    With `joint` the tokens of all samples make one Gram matrix, for which all `batches` are held at once; else those of
    each its own. InputError for less than one probe, NumericsError with group and unit where a gradient is not finite.
    """
    if probes < 1:
        raise InputError(f"probes={probes} must be at least 1")
    wanted = [anatomy.block(name) for name in groups if anatomy.block(name).units.size]
    first = {block.units.name: first_later(anatomy, block) for block in wanted}
    least = min(first.values(), default=0)
    later = {z: block for z, block in points(anatomy).items() if z >= least}
    sizes = {block.units.name: block.units.size for block in wanted}
    trajectory, answers = ({name: _Mean(size) for name, size in sizes.items()} for _ in range(2))
    taps = _Taps(model, anatomy, wanted)
    scale = loss_scale(model)
    with ExitStack() as stack:
        stack.enter_context(frozen(model))
        stack.enter_context(taps.placed())
        found = stack.enter_context(features(model, later))
        moved = [batch.on(model) for batch in batches]
        for part in [moved] if joint else ([batch] for batch in moved):
            passes = []
            for batch in part:
                with torch.enable_grad(), repeatable():
                    outputs = run(model, batch.inputs)
                    answer = answer_of(outputs, batch, getattr(model, "config", None), causal)
                passes.append(_Pass(batch, dict(found), dict(taps.inputs), answer))
            need_reached(sizes, taps.inputs)
            squares = {name: torch.zeros(probes, size, dtype=torch.float64) for name, size in sizes.items()}
            for draw in range(probes):
                gradients = _trajectory_gradients(passes, key(seed, draw), joint, taps, first, anatomy, scale)
                for name, g in gradients.items():
                    squares[name][draw] = g.square().sum(0)
            for name, draws in squares.items():
                trajectory[name].add(draws)
            for one in passes:
                for name, draws in _answer_squares(one, taps, probes, seed, most_classes, scale).items():
                    answers[name].add(draws)
    removal = Removal.zeros({g.name: g.size for g in anatomy.groups})
    for name in sizes:
        removal.trajectory[name], removal.answer[name] = trajectory[name].mean, answers[name].mean
        removal.trajectory_error[name] = trajectory[name].variance.sqrt()
        removal.answer_error[name] = answers[name].variance.sqrt()
        finite = torch.isfinite(removal.trajectory[name] + removal.answer[name])
        if not bool(finite.all()):
            unit = int((~finite).nonzero()[0])
            raise NumericsError(f"{name}, unit {unit}: gradients are NaN or Inf; check the weights, or score in fp32")
    return removal


class _Pass:
    """One forward pass: features of later layers, what the projections of the units read, and the answer."""

    def __init__(
        self, batch: Batch, found: dict[int, torch.Tensor], inputs: dict[str, torch.Tensor], answer: Answer
    ) -> None:
        self.batch, self.features, self.inputs, self.answer = batch, found, inputs, answer


class _Taps:
    """Taps at the masks of `blocks`: their gradients of each backward pass, `[B, size]` a group."""

    def __init__(self, model: nn.Module, anatomy: Anatomy, blocks: list[Block]) -> None:
        self.model, self.blocks = model, blocks
        self.anatomy = replace(anatomy, blocks=tuple(blocks), layer_groups=(), token_groups=())
        self.inputs: dict[str, torch.Tensor] = {}
        self._found: dict[str, torch.Tensor] = {}
        self._deaf = False

    def placed(self) -> ExitStack:
        """A context in which forward passes go through the taps."""
        stack = ExitStack()
        stack.enter_context(mask_taps(self.model, self.anatomy, self._add))
        for block in self.blocks:
            handle = self.model.get_submodule(block.projection).register_forward_pre_hook(self._remember(block))
            stack.callback(handle.remove)
        return stack

    def backward(self, tensors: list[torch.Tensor], gradients: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """`{group: [B, size]}` of one backward pass, which may be repeated; of no group that it does not reach."""
        self._found = {}
        torch.autograd.backward(tensors, gradients, retain_graph=True)
        return {name: g.double().cpu() for name, g in self._found.items()}

    def own(self, block: Block, feature: torch.Tensor, x: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor | None:
        """The mask gradients `[B, size]` of `block` by way of what its own layer writes alone."""
        self._deaf = True
        try:
            (dx,) = torch.autograd.grad(feature, x, gradient, retain_graph=True, allow_unused=True)
        finally:
            self._deaf = False
        if dx is None:
            return None
        samples = len(gradient)
        found = prod_reduce(by_sample(x.detach(), samples), by_sample(dx, samples), group=block.units.width)
        return found.double().cpu()

    def _remember(self, block: Block) -> Callable[..., None]:
        def remember(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            self.inputs[block.units.name] = args[0]

        return remember

    def _add(self, name: str, values: torch.Tensor, units: torch.Tensor) -> None:
        if not self._deaf:
            self._found[name] = self._found[name] + values if name in self._found else values


def _trajectory_gradients(
    passes: list[_Pass],
    seed: int,
    joint: bool,
    taps: _Taps,
    first: Mapping[str, int],
    anatomy: Anatomy,
    scale: float,
) -> dict[str, torch.Tensor]:
    """Mask gradients of one probe, `[B, size]` a group; with `joint` `[1, size]`, the sum over all passes."""
    totals: dict[str, torch.Tensor] = {}
    probes = {z: _probe(passes, z, seed, joint, scale) for z in passes[0].features}
    for i, one in enumerate(passes):
        reached = [z for z, f in one.features.items() if f.requires_grad]
        found = taps.backward([one.features[z] for z in reached], [probes[z][i] for z in reached])
        for block in taps.blocks:
            name, z = block.units.name, layer_number(anatomy, block)
            if z < first[name] and z in reached:
                own = taps.own(block, one.features[z], one.inputs[name], probes[z][i])
                if own is not None:
                    found[name] = found[name] - own
        for name, g in found.items():
            g = g / scale
            totals[name] = totals.get(name, 0) + g.sum(0, keepdim=True) if joint else g
    return totals


def _probe(passes: list[_Pass], z: int, seed: int, joint: bool, scale: float) -> list[torch.Tensor]:
    """The gradients of one probe at the features of layer `z`, one tensor a pass."""
    if not joint:
        (one,) = passes
        f = one.features[z].detach()
        keys = torch.tensor([key(seed, z, sample) for sample in one.batch.index.tolist()], device=f.device)
        return [gram_probe_grad(f, keys, one.batch.padding(f.shape[1])) * scale]
    parts = [one.features[z].detach() for one in passes]
    real = torch.cat([one.batch.mask(f.shape[1]).flatten() for one, f in zip(passes, parts, strict=True)])
    rows = torch.cat([f.flatten(0, 1) for f in parts])
    keys = torch.tensor([key(seed, z)], device=rows.device)
    gradient = gram_probe_grad(rows[None], keys, real[None])[0] * scale
    sizes = [f.shape[0] * f.shape[1] for f in parts]
    return [g.view_as(f) for g, f in zip(gradient.split(sizes), parts, strict=True)]


def _answer_squares(
    one: _Pass, taps: _Taps, probes: int, seed: int, most_classes: int, scale: float
) -> dict[str, torch.Tensor]:
    """Draws `[n, size]` of every group whose mean is the divergence: one, where it is exact to second order."""
    answer = one.answer
    single = bool((answer.owner.bincount(minlength=1) <= 1).all())
    exact = single and answer.values.shape[1] <= most_classes
    if exact:
        cotangents = information_roots(answer)
    else:
        cotangents = (information_probe(answer, one.batch.index, seed, draw) for draw in range(probes))
    squares: dict[str, list[torch.Tensor]] = {block.units.name: [] for block in taps.blocks}
    for cotangent in cotangents:
        for name, g in taps.backward([answer.values], [cotangent * scale]).items():
            squares[name].append((g / scale).square().sum(0) / 2)
    # Summed, one draw without an error: n equal rows would have none either, but a single one is taken for random.
    return {
        name: torch.stack(draws).sum(0).expand(2, -1) if exact else torch.stack(draws)
        for name, draws in squares.items()
        if draws
    }
