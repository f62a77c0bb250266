"""How far a model's predictions are from the dense model's, and the curvature of that: cotangents without labels."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from pyprune.capture.cotangent import _noise, _sample
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
        embedded, said = is_embedding(outputs), self.said(outputs, batch)
        apart = [1 - (s * t).sum(-1) if embedded else self._apart(s, t) for s, t in zip(said, self.dense, strict=True)]
        total = torch.stack(apart).mean(0)
        if total.dim() == 2:
            real = batch.mask(total.shape[1]).to(total)
            total = (total * real).sum(1) / real.sum(1)
        return total.sum()

    def holds_values(self, logits: torch.Tensor) -> bool:
        """Whether these are no logits of classes or labels, but values."""
        return logits.shape[-1] == 1 or self.problem == "regression"

    def _apart(self, logits: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
        """`[B]` or `[B, T]` of logits with one dimension more."""
        if self.holds_values(logits):
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


class Curvature:
    """A random direction v in which outputs s are differentiated: <s, v>, summed over samples.

    E[v v'] is the second derivative of the divergence at s, as if the dense model said s too: squared gradients are on
    average the diagonal of its Gauss-Newton matrix. For classes v = q - y, with q the prediction at temperature T and y
    drawn from it; for values and embeddings v is normal. Draws belong to a sample, whatever its batch.
    """

    def __init__(self, divergence: Divergence, seed: int) -> None:
        self.divergence, self.seed = divergence, seed

    def __call__(self, outputs: Any, batch: Batch, draw: int = 0) -> torch.Tensor:
        said, embedded = self.divergence.said(outputs, batch), is_embedding(outputs)
        total = said[0].new_zeros(())
        for part, s in enumerate(said):
            s = _finite(s)
            each = (s * self._direction(s.detach(), batch, draw * len(said) + part, embedded)).sum(-1)
            if each.dim() == 2:
                real = batch.mask(each.shape[1]).to(each)
                each = (each * real).sum(1) / real.sum(1).sqrt()
            total = total + each.sum()
        return total / len(said) ** 0.5

    def _direction(self, s: torch.Tensor, batch: Batch, draw: int, embedded: bool) -> torch.Tensor:
        if embedded:
            return self._numbers(s, batch, draw, s.shape[-1], uniform=False)
        if self.divergence.holds_values(s):
            return self._numbers(s, batch, draw, s.shape[-1], uniform=False) / s.shape[-1] ** 0.5
        softened = s / self.divergence.temperature
        if self.divergence.problem == "multi_label_classification":
            said = softened.sigmoid()
            return said - (self._numbers(s, batch, draw, s.shape[-1], uniform=True) < said).to(s)
        uniform = self._numbers(s, batch, draw, 1, uniform=True)
        drawn = _sample(softened.flatten(0, -2), uniform.flatten(0, -2)).view(s.shape[:-1])
        return softened.softmax(-1) - F.one_hot(drawn, s.shape[-1]).to(s)

    def _numbers(self, s: torch.Tensor, batch: Batch, draw: int, width: int, uniform: bool) -> torch.Tensor:
        """`[B, width]` or `[B, T, width]`, 0 at padding."""
        samples = batch.index.tolist()
        if s.dim() == 2:
            return torch.stack([_noise(self.seed, i, draw, (width,), uniform) for i in samples]).to(s)
        lengths = batch.mask(s.shape[1]).sum(1).tolist()
        rows = [_noise(self.seed, i, draw, (n, width), uniform) for i, n in zip(samples, lengths, strict=True)]
        return torch.stack([F.pad(row, (0, 0, 0, s.shape[1] - len(row))) for row in rows]).to(s)


def is_embedding(outputs: Any) -> bool:
    """Whether these outputs hold no logits."""
    return not hasattr(outputs, "start_logits") and logits_of(outputs) is None


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _finite(logits: torch.Tensor) -> torch.Tensor:
    """What may not be predicted has a logit of -inf, and no difference from another."""
    return logits.clamp(min=-1e30)
