"""LFPR: label-free pruning of models that write their answers token by token (Poh, Chan and Lim 2024).

A unit's score is the squared gradient of its mask for the largest logit of one decoding step. The step is found by
greedy decoding with a KV cache; then one forward and backward pass over all tokens before it does what the released
code does by decoding step after step again.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from pyprune.capture.collect import collect
from pyprune.capture.cotangent import MaxLogit
from pyprune.capture.greedy import Decoded, decode
from pyprune.core.anatomy import Anatomy
from pyprune.core.batches import Batch, Samples, batching
from pyprune.core.errors import InputError
from pyprune.core.scores import Scores
from pyprune.core.stages import Stages
from pyprune.importance.fisher import per_batch, per_sample
from pyprune.recipes.cotangents import has_logits, is_causal
from pyprune.recipes.oneshot import OneShot
from pyprune.recipes.precision import checked_dtype, in_dtype
from pyprune.recipes.registry import RECIPES


@RECIPES.register("lfpr")
@dataclass(frozen=True)
class LFPR(OneShot):
    """Settings of the recipe, besides `tuning`, `damping`, `score_dtype` and `calibrate` of `OneShot`.

    - `steps`: tokens that are decoded at most; a sample's own step is the one of the largest logit.
    - `step`: which one is scored: the `median` of `batch` samples, as published, or each sample's `own`.
    - `squared`: gradients are squared for each `sample`, or their sum over `batch` samples is, as published.
    - `batch`: samples that share a step or a square, in the data's own order.
    - `dropout`: leave it on, with the same draws in every forward pass.
    - `compat="published"` sets `step="median"`, `squared="batch"` and `dropout=True`.

    Models that classify have one step. Criterion and cotangent are the recipe's own.
    """

    tuning: str = "none"
    steps: int = 12
    step: Literal["median", "own"] = "median"
    squared: Literal["sample", "batch"] = "sample"
    batch: int = 8
    dropout: bool = False
    compat: Literal["", "published"] = ""

    name: ClassVar[str] = "lfpr"

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.criterion, self.cotangent, self.draws, self.tokens) != ("fisher", "auto", None, "sum"):
            raise InputError('recipe="lfpr" has one score: choose another recipe for other criteria and cotangents')
        if self.compat == "published":
            for name, value in (("step", "median"), ("squared", "batch"), ("dropout", True)):
                object.__setattr__(self, name, value)
        elif self.compat:
            raise InputError(f"compat={self.compat!r} must be 'published' or left out")
        if self.step not in ("median", "own") or self.squared not in ("sample", "batch"):
            raise InputError(f"step={self.step!r}, squared={self.squared!r}: choose median or own, sample or batch")
        if min(self.steps, self.batch) < 1:
            raise InputError(f"steps={self.steps}, batch={self.batch}: at least 1 each")

    def score(self, model: nn.Module, anatomy: Anatomy, samples: Samples, seed: int, stages: Stages) -> Scores:
        """Scores of every unit with the per-sample gradients that they came from.

        InputError for models without logits.
        """
        anatomy.need_masks(f"recipe={self.name!r}")
        if not has_logits(model):
            raise InputError(f"recipe='lfpr' needs logits, and {type(model).__name__} has none: use recipe='kwon'")
        scored = in_dtype(model, checked_dtype(self.score_dtype))
        meta = {"criterion": self.name, "seed": seed, "mean_length": float(samples.lengths.double().mean())}
        meta |= {"samples": len(samples), "compat": self.compat}
        before = samples
        if is_causal(model):
            with stages.stage("decode"):
                before = self._until(model, samples)
        batches = stages.progress(self._batches(model, before), "score")
        found = collect(scored, anatomy, batches, MaxLogit(is_causal(model)), before.lengths, dropout=self.dropout)
        statistics = replace(found, lengths=samples.lengths)
        if self.squared == "batch":
            values = per_batch(statistics, self.batch, mean=False)
        else:
            values = per_sample(statistics)
        return self._calibrated(Scores(values, meta, statistics), model, anatomy, samples, stages)

    def _batches(self, model: nn.Module, samples: Samples) -> list[Batch]:
        """With dropout, samples travel in the data's own order: which of them share its draws counts.

        Of each `batch` of them, those do that can be stacked.
        """
        if not self.dropout:
            return samples.batches(**batching(model))
        alike: dict[tuple[object, ...], list[int]] = defaultdict(list)
        for s, shapes in enumerate(samples.rigid_shapes):
            alike[s // self.batch, shapes].append(s)
        return [samples.collate(own) for own in alike.values()]

    def _until(self, model: Any, samples: Samples) -> Samples:
        """`samples` with what the model has decoded before the step that is scored."""
        written = "decoder_input_ids" in samples.inputs[0]
        name = "decoder_input_ids" if written else "input_ids"
        # What a decoder reads is decoded text itself, or an answer: raw inputs are meant. Segments would end too early.
        given = [
            name
            for name in samples.inputs[0]
            if name not in (samples.decoded, "token_type_ids") and not name.startswith("decoder_")
        ]
        raw = [{name: row[name] for name in given} for row in samples.inputs]
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        if not written and positions and "input_ids" in raw[0]:  # a long prompt leaves room by losing its beginning
            room = max(1, positions - self.steps)
            raw = [{k: v[-room:] if v.dim() == 1 else v for k, v in row.items()} for row in raw]
        decoded = decode(model, replace(samples, inputs=raw, labels=None), self.steps)
        steps = [int(found.peaks.argmax()) for found in decoded]
        if self.step == "median":
            groups = [torch.tensor(steps[i : i + self.batch]).double() for i in range(0, len(steps), self.batch)]
            steps = [int(group.quantile(0.5)) for group in groups for _ in group]
        rows = [{**row, name: _before(found, at)} for row, found, at in zip(raw, decoded, steps, strict=True)]
        return replace(samples, inputs=rows, labels=None)


def _before(decoded: Decoded, step: int) -> torch.Tensor:
    """What is read at the step, or at the last one where a sample ended before."""
    return decoded.before(min(step, len(decoded.peaks) - 1))
