"""What removing each unit changes, exactly: changes are carried through the layers behind it (`capture.deltas`).

A unit's removal changes its block's output by -x W of its own channels, which takes no product over all of them. From
there the model runs on, its layers in front replaced by what they put out once: for many units at a time, with the
tensors of the unchanged pass shared by all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

import pyprune.capture.delta_rules  # noqa: F401  (deltas know no rules without)
from pyprune.capture.collect import frozen
from pyprune.capture.deltas import Delta, NoRule, parts
from pyprune.capture.outputs import run
from pyprune.capture.taps import need_reached
from pyprune.capture.token_masks import forward_replaced
from pyprune.capture.trajectory import (
    Answer,
    Removal,
    answer_of,
    divergence,
    features,
    first_later,
    gram_distance,
    key,
    layer_number,
    points,
    unit_rows,
)
from pyprune.core.anatomy import Anatomy, Block
from pyprune.core.batches import Batch
from pyprune.core.errors import NumericsError
from pyprune.core.layers import matrix

Engine = Literal["deltas", "forwards"]
# Rows that travel at once, tokens times units: their tensors should stay in cache on a CPU, and fill a GPU.
_ROWS = {"cpu": 4096, "cuda": 1 << 18}


class _Pass(NamedTuple):
    """The unchanged pass of one batch: what layers put out, what projections read and wrote."""

    batch: Batch
    layers: dict[str, Any]
    inputs: dict[str, torch.Tensor]
    outputs: dict[str, torch.Tensor]
    rows: dict[int, torch.Tensor]
    answer: Answer


@torch.no_grad()
def leave_one_out(
    model: nn.Module,
    anatomy: Anatomy,
    batches: Iterable[Batch],
    units: Mapping[str, torch.Tensor],
    joint: bool = False,
    causal: bool = False,
    engine: Engine = "deltas",
    rows: int = 0,
    seed: int = 0,
    progress: Callable[[list[Block]], Iterable[Block]] = iter,
) -> Removal:
    """What removing each of `units` `{group: indices}` changes; the others stay 0.

    With `joint` the tokens of all samples make one Gram matrix, else those of each its own; with `rows` besides, so
    many of them, drawn for each unit and layer anew, as published. `engine="forwards"` runs
    the layers behind a unit without it and subtracts: exact only as far as the model's floating-point type reaches.
    Raises `deltas.NoRule` for a model whose code the changes cannot follow, NumericsError with layer and unit where a
    change is not finite.
    """
    removal = Removal.zeros({g.name: g.size for g in anatomy.groups})
    wanted = [anatomy.block(name) for name, chosen in units.items() if len(chosen)]
    whole = _unchanged(model, anatomy, batches, wanted, causal)
    with frozen(model):
        for passes in [list(whole)] if joint else ([one] for one in whole):
            for block in progress(wanted):
                name = block.units.name
                found = _of_block(model, anatomy, passes, block, units[name], joint, causal, engine, rows, seed)
                for sums, values in zip((removal.trajectory, removal.answer), found, strict=True):
                    sums[name][units[name]] += values.double().cpu()
    for name, chosen in units.items():
        finite = torch.isfinite(removal.trajectory[name] + removal.answer[name])
        if not bool(finite[chosen].all()):
            unit = int(chosen[~finite[chosen]][0])
            raise NumericsError(f"{name}, unit {unit}: what its removal changes is NaN or Inf; check the weights")
    return removal


def _unchanged(
    model: nn.Module, anatomy: Anatomy, batches: Iterable[Batch], wanted: list[Block], causal: bool
) -> Iterator[_Pass]:
    for batch in batches:
        moved = batch.on(model)
        layers: dict[str, Any] = {}
        inputs, written = {}, {}
        with ExitStack() as hooks:
            for path in anatomy.layers:
                keep = _keeper(layers, path)
                hooks.callback(model.get_submodule(path).register_forward_hook(keep).remove)
            for block in wanted:
                path = block.projection
                keep = _keeper(written, path, inputs)
                hooks.callback(model.get_submodule(path).register_forward_hook(keep).remove)
            found = hooks.enter_context(features(model, points(anatomy)))
            hooks.enter_context(frozen(model))
            outputs = run(model, moved.inputs)
        need_reached((b.units.name for b in wanted), {b.units.name for b in wanted if b.projection in written})
        rows = {z: unit_rows(f, moved.padding(f.shape[1])) for z, f in found.items()}
        answer = answer_of(outputs, moved, getattr(model, "config", None), causal)
        yield _Pass(moved, layers, inputs, written, rows, answer)


def _keeper(outputs: dict, path: str, inputs: dict | None = None) -> Callable[..., None]:
    def keep(_: nn.Module, args: tuple, output: Any) -> None:
        outputs[path] = _copied(output)  # what reads it may change it in place
        if inputs is not None:
            inputs[path] = args[0]

    return keep


def _of_block(
    model: nn.Module,
    anatomy: Anatomy,
    passes: list[_Pass],
    block: Block,
    units: torch.Tensor,
    joint: bool,
    causal: bool,
    engine: Engine,
    rows: int,
    seed: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(trajectory, answer) `[len(units)]` of the removal of each of `units` alone."""
    first = first_later(anatomy, block)
    later = {z: point for z, point in points(anatomy).items() if z >= first}
    travelling = sum(len(one.batch.index) * int(one.batch.lengths.max()) for one in passes)
    device = passes[0].answer.values.device
    at_once = max(1, _ROWS["cpu" if device.type == "cpu" else "cuda"] // travelling)
    before = anatomy.layers[: layer_number(anatomy, block)]
    current: list[torch.Tensor] = []
    config = getattr(model, "config", None)

    def removed(changes: list[torch.Tensor], picked: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Of one unit, which changes the projection's output by `changes`, one tensor a batch.

        The Gram matrices of layers are those of the rows `picked`, if any are.
        """
        moved: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = {z: [] for z in later}
        answer = changes[0].new_zeros((), dtype=passes[0].answer.values.dtype)
        for one, change in zip(passes, changes, strict=True):
            base = one.outputs[block.projection].clone()
            current[:] = [Delta.of(base, change) if engine == "deltas" else base + change]
            with _from_layer(model, before, one.layers), features(model, later) as found:
                outputs = run(model, one.batch.inputs)
            for z, f in found.items():
                moved[z].append((one.rows[z], _change(unit_rows(f, one.batch.padding(f.shape[1])), one.rows[z])))
            values = answer_of(outputs, one.batch, config, causal).values
            answer = answer + divergence(one.answer.kind, one.answer.values, _change(values, one.answer.values))
        total = answer.new_zeros(())
        for i, pairs in enumerate(moved.values()):
            if joint:
                pairs = [tuple(torch.cat([pair[i].flatten(0, 1) for pair in pairs]) for i in (0, 1))]
            if picked:
                pairs = [tuple(t[picked[i]] for t in pairs[0])]
            total = total + sum(gram_distance(*pair) for pair in pairs)
        return total, answer

    tokens = {z: sum(one.rows[z].shape[:-1].numel() for one in passes) for z in later}
    weight = matrix(model.get_submodule(block.projection))
    found = []
    with forward_replaced(model.get_submodule(block.projection), lambda *_: current[0]):
        for chosen in units.to(device).split(at_once):
            channels = chosen[:, None] * block.units.width + torch.arange(block.units.width, device=device)
            own = weight.T[channels]
            changes = [
                -torch.einsum("...kw,kwd->k...d", one.inputs[block.projection][..., channels], own) for one in passes
            ]
            picked = [_picked(chosen, n, rows, key(seed, z)).to(device) for z, n in tokens.items()] if rows else []
            if engine == "deltas":
                found.append(torch.vmap(removed, randomness="same")(changes, picked))
            else:
                each = [removed([c[k] for c in changes], [p[k] for p in picked]) for k in range(len(chosen))]
                found.append(tuple(torch.stack(values) for values in zip(*each, strict=True)))
    trajectory, answer = (torch.cat(values) for values in zip(*found, strict=True))
    return trajectory, answer


def _picked(units: torch.Tensor, tokens: int, rows: int, seed: int) -> torch.Tensor:
    """`[len(units), rows]`: of so many tokens, those that make up each unit's Gram matrix."""
    draws = [
        torch.randperm(tokens, generator=torch.Generator().manual_seed(key(seed, unit))) for unit in units.tolist()
    ]
    return torch.stack([draw[:rows] for draw in draws])


def _change(after: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """By how much `after` differs from `before`, the tensor of the unchanged pass."""
    if isinstance(after, Delta):
        return parts(after)[1]
    return after - before


@contextmanager
def _from_layer(model: nn.Module, before: Iterable[str], outputs: Mapping[str, Any]) -> Iterator[None]:
    """Let the layers `before` put out what they did."""
    with ExitStack() as stack:
        for path in before:
            stack.enter_context(forward_replaced(model.get_submodule(path), _again(outputs[path])))
        yield


def _again(output: Any) -> Callable[..., Any]:
    return lambda *_, **__: _copied(output)


def _copied(output: Any) -> Any:
    if isinstance(output, torch.Tensor):
        return output.clone()
    return type(output)(map(_copied, output)) if type(output) in (tuple, list) else output


__all__ = ["Engine", "NoRule", "leave_one_out"]
