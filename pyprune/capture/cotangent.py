"""Which direction is differentiated: one scalar per draw, whose gradient at the unit masks is the score's raw material.

Every cotangent is a *sum* over samples, so that a sample's gradient depends neither on the batch it travels in nor on
padding. Random draws belong to a sample (its index, the draw, the seed), not to a batch, for the same reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F

from pyprune.capture.outputs import embedding_of, logits_of
from pyprune.core.batches import Batch
from pyprune.core.errors import InputError

Cotangent = Callable[[Any, Batch, int], torch.Tensor]
TokenReduction = Literal["sum", "mean"]
LossReduction = Literal["sum", "mean", "token_mean"]

# Probabilities that are held in float64 at once: 128 MiB, where 4,096 tokens over 128 k words would take 4 GiB.
_DRAWN_AT_ONCE = 1 << 24


class EmbeddingProbe:
    """Random projections of a sample's embedding `e` (`capture.outputs`): `sum <e, z>` with `z ~ N(0, I)`.

    E_z[(d<e, z>/dm)^2] = |de/dm|^2 is the diagonal of the Gauss-Newton matrix of the embedding: the label-free score of
    an encoder without a head (1/2 |de|^2 is one minus the cosine between the dense and the pruned embedding).
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __call__(self, outputs: Any, batch: Batch, draw: int) -> torch.Tensor:
        embedding = embedding_of(outputs, batch)
        if embedding is None:
            raise InputError(f"cotangent 'embedding' needs hidden states, which {type(outputs).__name__} does not hold")
        z = torch.stack([_noise(self.seed, s, draw, (embedding.shape[-1],)) for s in batch.index.tolist()])
        return (embedding * z.to(embedding)).sum()


class NegativeLogLikelihood:
    """Negative log-likelihood of labels: the task's own (`labels="given"`, empirical Fisher, Kwon et al. 2022) or
    labels drawn from the model's own predictions (`labels="sampled"`, true Fisher, needs none).

    `config` is the model's: it tells regression and multi-label heads from classification. In a `causal` model logits
    at t predict token t + 1, whose labels are the inputs themselves when none are given.
    `tokens` sums or averages over a sample's own tokens.
    """

    def __init__(
        self,
        labels: Literal["given", "sampled"],
        causal: bool,
        config: Any,
        seed: int = 0,
        tokens: TokenReduction = "sum",
    ) -> None:
        if labels not in ("given", "sampled"):
            raise InputError(f"labels={labels!r} must be 'given' or 'sampled'")
        if tokens not in ("sum", "mean"):
            raise InputError(f"tokens={tokens!r} must be 'sum' or 'mean'")
        self.sampled, self.causal, self.seed, self.tokens = labels == "sampled", causal, seed, tokens
        self.problem = getattr(config, "problem_type", None)

    def __call__(self, outputs: Any, batch: Batch, draw: int) -> torch.Tensor:
        if hasattr(outputs, "start_logits"):
            return self._span(outputs, batch, draw)
        logits = logits_of(outputs)
        if logits is None:
            raise InputError(
                f"the model puts out a {type(outputs).__name__}, which has no logits: load it as a class with one task "
                'head, or without a head ("architectures" in its config.json)'
            )
        logits = logits.float()
        if logits.dim() == 2:
            return self._sequence(logits, batch, draw)
        return self._tokens(logits, batch, draw)

    def _labels(self, batch: Batch, shape: Sequence[int], classes: int | None = None) -> torch.Tensor:
        """The data's labels in `shape` `[B, ...]`; with `classes`, integers below it or -100."""
        labels = batch.labels
        if labels is None:
            raise InputError(
                "cotangent 'labels' needs labelled data; use 'sampled', which draws labels from the model's predictions"
            )
        if labels.numel() != math.prod(shape):
            raise InputError(
                f"data: the model needs labels {list(shape[1:])} a sample, found {list(labels.shape[1:])} ([]: one)"
            )
        if classes is not None:
            odd = (labels != -100) & ((labels < 0) | (labels >= classes) | (labels != labels.long()))
            if odd.any():
                raise InputError(f"data: label {labels[odd][0].item()} is none of the {classes} classes from 0 on")
            labels = labels.long()
        return labels.reshape(*shape)

    def _uniform(self, batch: Batch, draw: int, size: int, like: torch.Tensor) -> torch.Tensor:
        rows = [_noise(self.seed, s, draw, (size,), uniform=True) for s in batch.index.tolist()]
        return torch.stack(rows).to(like.device)

    def _sequence(self, logits: torch.Tensor, batch: Batch, draw: int) -> torch.Tensor:
        problem = self.problem or ("regression" if logits.shape[1] == 1 else "single_label_classification")
        if problem == "regression":
            if self.sampled:
                noise = torch.stack([_noise(self.seed, s, draw, (logits.shape[1],)) for s in batch.index.tolist()])
                target = logits.detach() + noise.to(logits)
            else:
                target = self._labels(batch, logits.shape).to(logits)
            return 0.5 * (logits - target).square().sum()
        if problem == "multi_label_classification":
            if self.sampled:
                target = (self._uniform(batch, draw, logits.shape[1], logits) < logits.detach().sigmoid()).to(logits)
            else:
                target = self._labels(batch, logits.shape).to(logits)
            return F.binary_cross_entropy_with_logits(logits, target, reduction="sum")
        target = (
            _sample(logits, self._uniform(batch, draw, 1, logits))
            if self.sampled
            else self._labels(batch, logits.shape[:1], logits.shape[1]).to(logits.device)
        )
        return F.cross_entropy(logits, target.view(-1), reduction="sum")

    def _tokens(self, logits: torch.Tensor, batch: Batch, draw: int) -> torch.Tensor:
        tokens = batch.inputs.get("decoder_input_ids", batch.inputs.get("input_ids")) if self.causal else None
        if tokens is not None:  # of one sequence with an image, the text comes last
            logits = logits[:, -tokens.shape[1] :]
        real, classes = batch.mask(logits.shape[1]).to(logits.device), logits.shape[2]
        lengths = real.sum(1).tolist()
        if tokens is not None:
            logits, real = logits[:, :-1], real[:, 1:]
        if self.sampled:
            # Numbers are drawn a token, padding included, so that they do not depend on the batch's width.
            rows = [
                _noise(self.seed, s, draw, (int(n),), uniform=True)
                for s, n in zip(batch.index.tolist(), lengths, strict=True)
            ]
            uniform = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)[:, : logits.shape[1]].to(logits.device)
            target = _sample(logits.flatten(0, 1), uniform.reshape(-1, 1)).view(uniform.shape)
        elif tokens is not None:
            given = tokens if batch.labels is None else self._labels(batch, tokens.shape, classes)
            target = given[:, 1:].to(logits.device)
        else:
            target = self._labels(batch, real.shape, classes).to(logits.device)
        target = torch.where(real, target, -100)
        loss = F.cross_entropy(logits.transpose(1, 2), target, reduction="none", ignore_index=-100).sum(1)
        if self.tokens == "mean":
            loss = loss / (target != -100).sum(1).clamp(min=1)
        return loss.sum()

    def _span(self, outputs: Any, batch: Batch, draw: int) -> torch.Tensor:
        loss = outputs.start_logits.new_zeros((), dtype=torch.float32)
        real = batch.mask(outputs.start_logits.shape[1]).to(outputs.start_logits.device)
        for part, logits in enumerate((outputs.start_logits, outputs.end_logits)):
            logits = logits.float().masked_fill(~real, torch.finfo(torch.float32).min)
            if self.sampled:
                target = _sample(logits, self._uniform(batch, draw, 2, logits)[:, part : part + 1])
            else:
                target = self._labels(batch, (len(logits), 2), logits.shape[1])[:, part].to(logits.device)
            loss = loss + F.cross_entropy(logits, target.view(-1), reduction="sum")
        return loss


class MaxLogit:
    """The largest logit of what a sample is about, summed over samples (Poh, Chan and Lim 2024): no labels.

    Of a model that is `causal` it is that of the last token, whose logits choose the next; of others the largest of all
    tokens, or of the sample.
    """

    def __init__(self, causal: bool) -> None:
        self.causal = causal

    def __call__(self, outputs: Any, batch: Batch, draw: int) -> torch.Tensor:
        logits = logits_of(outputs)
        if logits is None:
            raise InputError(f"the largest logit is wanted, and {type(outputs).__name__} holds no logits")
        peaks = logits.float().amax(-1)
        if peaks.dim() == 1:
            return peaks.sum()
        if not self.causal:
            real = batch.mask(peaks.shape[1]).to(peaks.device)
            return peaks.masked_fill(~real, -torch.inf).amax(1).sum()
        decoder = "decoder_input_ids" in batch.inputs
        tokens = batch.inputs["decoder_input_ids" if decoder else "input_ids"]
        mask = batch.inputs.get("decoder_attention_mask" if decoder else "attention_mask", torch.ones_like(tokens))
        # Of one sequence with an image, the text comes last.
        return peaks[:, -tokens.shape[1] :].gather(1, mask.sum(1, keepdim=True) - 1).sum()


class UserLoss:
    """A loss of the user's own, brought to sum form: `loss(outputs, batch) -> scalar`.

    `reduction` says what the scalar is over the batch: a `"sum"` over samples, a `"mean"` over samples (multiplied by
    B), or a `"token_mean"` over all labelled tokens of the batch (multiplied by their number, so that a sample's
    gradient is that of its own summed token losses). In a `causal` loss no token predicts the first one's label.
    """

    def __init__(
        self, loss: Callable[[Any, Batch], torch.Tensor], reduction: LossReduction, causal: bool = False
    ) -> None:
        if reduction not in ("sum", "mean", "token_mean"):
            raise InputError(f"loss_reduction={reduction!r} must be 'sum', 'mean' or 'token_mean'")
        self.loss, self.reduction, self.causal = loss, reduction, causal

    def __call__(self, outputs: Any, batch: Batch, draw: int) -> torch.Tensor:
        value = self.loss(outputs, batch)
        if value.dim():
            raise InputError(f"loss must return a scalar, found shape {tuple(value.shape)}")
        if self.reduction == "mean":
            return value * len(batch.index)
        if self.reduction == "token_mean":
            return value * self._tokens(batch).to(value.device)
        return value

    def _tokens(self, batch: Batch) -> torch.Tensor:
        labelled = batch.token_mask
        if batch.labels is not None and batch.labels.shape == labelled.shape:
            labelled = batch.labels != -100
        return labelled[:, int(self.causal) :].sum()


def _noise(seed: int, sample: int, draw: int, shape: tuple[int, ...], uniform: bool = False) -> torch.Tensor:
    # One generator a (seed, sample, draw): Python's tuple hash of ints is stable across processes.
    generator = torch.Generator().manual_seed(hash((seed, sample, draw)) & 0x7FFF_FFFF_FFFF_FFFF)
    return torch.rand(shape, generator=generator) if uniform else torch.randn(shape, generator=generator)


def _sample(logits: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Labels `[N]` drawn from softmax(`logits` `[N, C]`) by inverting its distribution at `uniform` `[N, 1]`."""
    rows = max(1, _DRAWN_AT_ONCE // logits.shape[-1])
    drawn = []
    for part, u in zip(logits.detach().split(rows), uniform.split(rows), strict=True):
        cumulative = part.softmax(-1, dtype=torch.float64).cumsum(-1)
        drawn.append(torch.searchsorted(cumulative, u.to(cumulative)).clamp(max=logits.shape[-1] - 1).squeeze(-1))
    return torch.cat(drawn)
