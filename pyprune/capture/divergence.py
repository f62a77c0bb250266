"""How far a model's predictions are from the dense model's: a cotangent that needs no labels."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from pyprune.capture.outputs import embedding_of, logits_of
from pyprune.core.batches import Batch
from pyprune.core.errors import InputError


class Divergence:
    """KL(dense || model) of predictions softened by `temperature` T, times T^2, summed over samples.

    A sample counts once: its tokens' divergences are averaged, and so are those of the start and the end of a span.
    Several labels are as many predictions, whose divergences are added. A single output, and the outputs of a
    regression, have half the squared difference instead, averaged; embeddings of norm 1 one minus their cosine.

    `dense` is what the dense model says (`said`) of the batch whose loss is asked for next. `config` is the model's; in
    a `causal` model the text comes last of a sequence with an image.
    """

    def __init__(self, causal: bool, config: Any, temperature: float) -> None:
        self.causal, self.temperature = causal, temperature
        self.problem = getattr(config, "problem_type", None)
        self.dense: tuple[torch.Tensor, ...] = ()

    def said(self, outputs: Any, batch: Batch) -> tuple[torch.Tensor, ...]:
        """What is compared of a model's outputs, in float32 at least: logits `[B, C]` or `[B, T, C]`, one or two."""
        if hasattr(outputs, "start_logits"):
            real = batch.mask(outputs.start_logits.shape[1]).to(outputs.start_logits.device)
            return tuple(_wide(x).masked_fill(~real, -torch.inf) for x in (outputs.start_logits, outputs.end_logits))
        logits = logits_of(outputs)
        if logits is None:
            embedding = embedding_of(outputs, batch)
            if embedding is None:
                raise InputError(f"a {type(outputs).__name__} holds neither logits nor hidden states to compare")
            return (embedding,)
        if logits.dim() == 3 and self.causal:
            tokens = batch.inputs.get("decoder_input_ids", batch.inputs.get("input_ids"))
            logits = logits if tokens is None else logits[:, -tokens.shape[1] :]
        return (_wide(logits),)

    def __call__(self, outputs: Any, batch: Batch, draw: int = 0) -> torch.Tensor:
        embedded = not hasattr(outputs, "start_logits") and logits_of(outputs) is None
        said = self.said(outputs, batch)
        apart = [1 - (s * t).sum(-1) if embedded else self._apart(s, t) for s, t in zip(said, self.dense, strict=True)]
        total = torch.stack(apart).mean(0)
        if total.dim() == 2:
            real = batch.mask(total.shape[1]).to(total)
            total = (total * real).sum(1) / real.sum(1)
        return total.sum()

    def _apart(self, logits: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
        """`[B]` or `[B, T]` of logits with one dimension more."""
        if logits.shape[-1] == 1 or self.problem == "regression":
            return 0.5 * (logits - dense).square().mean(-1)
        s, t = (_finite(x) / self.temperature for x in (logits, dense))
        if self.problem == "multi_label_classification":
            yes, no = (
                F.kl_div(F.logsigmoid(a * s), F.logsigmoid(a * t), reduction="none", log_target=True) for a in (1, -1)
            )
            each = yes + no
        else:
            each = F.kl_div(s.log_softmax(-1), t.log_softmax(-1), reduction="none", log_target=True)
        return each.sum(-1) * self.temperature**2


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _finite(logits: torch.Tensor) -> torch.Tensor:
    """What may not be predicted has a logit of -inf, and no difference from another."""
    return logits.clamp(min=-1e30)
