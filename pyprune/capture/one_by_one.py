"""OPTIN's scores as they were published: one masked forward pass per unit. For tests and benchmarks; it is slow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import nn

from pyprune.capture.collect import frozen
from pyprune.capture.masking import masked
from pyprune.capture.outputs import run
from pyprune.capture.trajectory import Answer, Removal, answer_of, features, first_later, points, unit_rows
from pyprune.core.anatomy import Anatomy
from pyprune.core.batches import Batch


@torch.no_grad()
def one_by_one(
    model: nn.Module,
    anatomy: Anatomy,
    batches: Iterable[Batch],
    units: Mapping[str, torch.Tensor],
    joint: bool = False,
    causal: bool = False,
) -> Removal:
    """What removing each of `units` `{group: indices}` changes: two whole forward passes, and the difference.

    With `joint` the tokens of all samples make one Gram matrix, else those of each its own. Give a model in float64:
    differences between passes drown in the rounding of anything narrower.
    """
    config, last = getattr(model, "config", None), points(anatomy)
    removal = Removal.zeros({g.name: g.size for g in anatomy.groups})
    moved = [batch.on(model) for batch in batches]

    def observed() -> tuple[dict[int, list[torch.Tensor]], list[torch.Tensor]]:
        """Gram matrices of every layer and log-probabilities (or means) of every batch."""
        rows: dict[int, list[torch.Tensor]] = {z: [] for z in last}
        answers = []
        for batch in moved:
            outputs = run(model, batch.inputs)
            for z, f in found.items():
                each = unit_rows(f, batch.padding(f.shape[1]))
                rows[z] += [each.flatten(0, 1)] if joint else list(each)
            answers.append(answer_of(outputs, batch, config, causal))
        if joint:
            rows = {z: [torch.cat(parts)] for z, parts in rows.items()}
        return {z: [r @ r.T for r in parts] for z, parts in rows.items()}, answers

    with frozen(model), features(model, last) as found:
        grams, answers = observed()
        for name, indices in units.items():
            block = anatomy.block(name)
            first = first_later(anatomy, block)
            for unit in indices.tolist():
                mask = torch.ones(block.units.size, dtype=torch.float64)
                mask[unit] = 0
                with masked(model, replace(anatomy, blocks=(block,)), {name: mask}):
                    changed, after = observed()
                removal.trajectory[name][unit] = sum(
                    float((s - t).square().sum())
                    for z in grams
                    if z >= first
                    for s, t in zip(changed[z], grams[z], strict=True)
                )
                removal.answer[name][unit] = sum(_divergence(t, s) for t, s in zip(answers, after, strict=True))
    return removal


def _divergence(before: Answer, after: Answer) -> float:
    """Sum of KL(before || after) over rows: p (log p - log q) - p + q, whose last two terms add up to nothing."""
    p, q = before.values, after.values
    if before.kind == "gaussian":
        return float((p - q).square().sum() / 2)
    if before.kind == "bernoulli":
        p, q = (torch.stack([t, torch.zeros_like(t)], -1) for t in (p, q))
    p, q = p.log_softmax(-1), q.log_softmax(-1)
    r = p - q
    return float((p.exp() * (r + torch.expm1(-r))).sum())
