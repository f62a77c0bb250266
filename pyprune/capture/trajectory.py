"""What a unit's removal changes on the way through a model: the features of later layers, and the answer.

OPTIN (Khaki and Plataniotis, ICLR 2024) compares a model without the unit with the whole one by

- the *trajectory*: sum over later layers z of ||M_z' - M_z||_F^2, M_z = F_z F_z^T the Gram matrix of token rows of L2
  norm 1. F_z `[T, d]` is what the last block of layer z writes to the residual stream, the output of its output
  projection before dropout, sum and norm: the published choice for language, and one that every family has.
- the *answer*: the Kullback-Leibler divergence of its predictions from those of the whole model.

A layer comes later if it is behind the unit's own; the last layer of a stack, which has none behind it, counts itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from pyprune.capture.outputs import embedding_of, logits_of, wide
from pyprune.capture.taps import batch_size, by_sample
from pyprune.core.anatomy import Anatomy, Block
from pyprune.core.batches import Batch
from pyprune.core.errors import InputError

Kind = Literal["categorical", "bernoulli", "gaussian"]
# Below this, e^u - 1 - u is summed from its series: what is left of a subtraction has lost half of its digits.
_SERIES_BELOW = 0.5
_TERMS = 16


@dataclass
class Removal:
    """What removing each unit changes, `{group: [size]}` float64: nothing for units that were not asked for.

    `errors` are standard errors of both, of estimates; 0 where they were computed exactly.
    """

    trajectory: dict[str, torch.Tensor]
    answer: dict[str, torch.Tensor]
    trajectory_error: dict[str, torch.Tensor]
    answer_error: dict[str, torch.Tensor]

    @classmethod
    def zeros(cls, sizes: Mapping[str, int]) -> Removal:
        """Of groups of so many units."""
        return cls(*({n: torch.zeros(size, dtype=torch.float64) for n, size in sizes.items()} for _ in range(4)))


@dataclass
class Answer:
    """Predictions of one batch: rows `values` `[R, C]` and the sample `[R]` that each is about.

    `categorical` are logits of one of C classes, `bernoulli` of C independent ones, `gaussian` means of variance 1.
    """

    kind: Kind
    values: torch.Tensor
    owner: torch.Tensor


def points(anatomy: Anatomy) -> dict[int, Block]:
    """`{layer: its last block}`, whose output is the layer's features; layers without units have none.

    InputError where a block has no output projection of its own.
    """
    anatomy.need_projections("features of layers")
    number = {path: i for i, path in enumerate(anatomy.layers)}
    return {number[block.layer_path]: block for block in anatomy.blocks if block.units.size}


def layer_number(anatomy: Anatomy, block: Block) -> int:
    """Which of the layers `block` is in."""
    return anatomy.layers.index(block.layer_path)


def first_later(anatomy: Anatomy, block: Block) -> int:
    """The first layer whose features count for units of `block`; all behind it do too."""
    own = layer_number(anatomy, block)
    stacks = [re.sub(r"\d+", "*", path) for path in anatomy.layers]
    return own if stacks[own] not in stacks[own + 1 :] else own + 1


@contextmanager
def features(model: nn.Module, blocks: Mapping[int, Block]) -> Iterator[dict[int, torch.Tensor]]:
    """A dict that every forward pass of `model` fills with `[B, T, d]`, what the `blocks` write."""
    found: dict[int, torch.Tensor] = {}
    with ExitStack() as hooks:
        samples = hooks.enter_context(batch_size(model))

        def hook(at: int) -> Callable[..., None]:
            def keep(_: nn.Module, __: Any, y: torch.Tensor) -> None:
                found[at] = by_sample(y, samples())

            return keep

        for at, block in blocks.items():
            hooks.callback(model.get_submodule(block.projection).register_forward_hook(hook(at)).remove)
        yield found


def unit_rows(f: torch.Tensor, real: torch.Tensor | None) -> torch.Tensor:
    """Token rows `[..., T, d]` of L2 norm 1, fp32 or wider; those that are not `real` `[B, T]` are 0."""
    rows = F.normalize(wide(f), dim=-1)
    return rows if real is None else torch.where(real[..., None], rows, 0.0)


def gram_distance(rows: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    """Sum over samples of ||M' - M||_F^2, of `rows` `[B, T, d]` that `change` by `[B, T, d]`.

    With G = F + D / 2 it is ||D G^T + G D^T||^2: no difference of two nearly equal matrices.
    """
    q = change @ (rows + change / 2).mT
    return (q + q.mT).square().sum()


def answer_of(outputs: Any, batch: Batch, config: Any, causal: bool) -> Answer:
    """The predictions in a model's `outputs`; of a model without any, its embedding.

    Tokens that are padding, and the last of a `causal` model, whose next is not among the data, are left out.
    """
    samples = torch.arange(len(batch.index), device=batch.lengths.device)
    if hasattr(outputs, "start_logits"):
        real = batch.mask(outputs.start_logits.shape[1])
        spans = [
            wide(t).masked_fill(~real, torch.finfo(torch.float32).min)
            for t in (outputs.start_logits, outputs.end_logits)
        ]
        return Answer("categorical", torch.cat(spans), samples.repeat(2))
    logits = logits_of(outputs)
    if logits is None:
        embedding = embedding_of(outputs, batch)
        if embedding is None:
            raise InputError(f"{type(outputs).__name__} has neither logits nor states to compare answers by")
        return Answer("gaussian", embedding, samples)
    if logits.dim() == 2:
        problem = getattr(config, "problem_type", None)
        if problem == "regression" or (problem is None and logits.shape[1] == 1):
            return Answer("gaussian", wide(logits), samples)
        return Answer("bernoulli" if problem == "multi_label_classification" else "categorical", wide(logits), samples)
    tokens = batch.inputs.get("decoder_input_ids", batch.inputs.get("input_ids")) if causal else None
    first = 0 if tokens is None else logits.shape[1] - tokens.shape[1]  # of one sequence with an image, text is last
    real = batch.mask(logits.shape[1] - first)
    if tokens is not None:
        real = F.pad(real[:, 1:], (0, 1))
    at = F.pad(real, (first, 0)).flatten().nonzero()[:, 0]
    owner = samples[:, None].expand(-1, logits.shape[1]).flatten()[at]
    return Answer("categorical", wide(logits.flatten(0, 1).index_select(0, at)), owner)


def divergence(kind: Kind, values: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    """Sum over rows of KL(before || after), of predictions `values` `[R, C]` that `change` by `[R, C]`.

    Computed from the change: log(sum p e^u) with u = change - mean change is log(1 + sum p (e^u - 1 - u)).
    """
    if kind == "gaussian":
        return change.square().sum() / 2
    if kind == "bernoulli":  # of two classes, whose logits are the value and 0
        values, change = (torch.stack([t, torch.zeros_like(t)], -1) for t in (values, change))
    p = values.softmax(-1)
    u = change - (p * change).sum(-1, keepdim=True)
    return torch.log1p((p * _exp_beyond_linear(u)).sum(-1)).sum()


def _exp_beyond_linear(u: torch.Tensor) -> torch.Tensor:
    """e^u - 1 - u to full relative precision."""
    small = u.clamp(-_SERIES_BELOW, _SERIES_BELOW)
    series = torch.ones_like(u)
    for n in range(_TERMS, 2, -1):
        series = 1 + small / n * series
    return torch.where(u.abs() < _SERIES_BELOW, small.square() / 2 * series, torch.expm1(u) - u)


def information_roots(answer: Answer) -> Iterator[torch.Tensor]:
    """Cotangents `[R, C]` whose squares sum up to what the divergence is twice of, to second order: C of them.

    Only exact for samples with one row; the square roots of diag(p) - p p^T and its like.
    """
    classes = answer.values.shape[1]
    for c in range(classes):
        one = F.one_hot(torch.tensor(c, device=answer.values.device), classes).to(answer.values)
        yield _root(answer, one.expand_as(answer.values))


def _root(answer: Answer, z: torch.Tensor) -> torch.Tensor:
    """The square root of the Fisher information of every row, transposed, times `z` `[R, C]`."""
    if answer.kind == "gaussian":
        return z.clone()
    if answer.kind == "bernoulli":
        p = answer.values.detach().sigmoid()
        return (p * (1 - p)).sqrt() * z
    p = answer.values.detach().softmax(-1)
    along = p.sqrt() * z
    return along - p * along.sum(-1, keepdim=True)


def information_probe(answer: Answer, index: torch.Tensor, seed: int, probe: int) -> torch.Tensor:
    """A random cotangent `[R, C]`, whose square is on average what the divergence is twice of, to second order.

    Signs are drawn by the sample's number `index[owner]`, so that they are the same in any batch.
    """
    signs = torch.empty_like(answer.values)
    for s, sample in enumerate(index.tolist()):
        mine = answer.owner == s
        generator = torch.Generator().manual_seed(key(seed, sample, probe))
        drawn = torch.randint(0, 2, (int(mine.sum()), answer.values.shape[1]), generator=generator)
        signs[mine] = (drawn * 2 - 1).to(signs)
    return _root(answer, signs)


def key(*numbers: int) -> int:
    """63 bits that depend on all `numbers`; Python's hash of a tuple of ints is the same in every process."""
    return hash(numbers) & 0x7FFF_FFFF_FFFF_FFFF
