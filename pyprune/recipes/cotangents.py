"""Which cotangent fits a model, for every recipe that differentiates."""

from __future__ import annotations

import re
from typing import Literal

from torch import nn

from pyprune.capture.cotangent import Cotangent, EmbeddingProbe, NegativeLogLikelihood, TokenReduction
from pyprune.core.errors import InputError

CotangentName = Literal["auto", "labels", "sampled", "embedding"]
_NAMES = ("auto", "labels", "sampled", "embedding")


def check_cotangent(name: str | Cotangent, draws: int | None, tokens: str) -> None:
    """Raise InputError for settings that `choose_cotangent` cannot use, before any data is read."""
    if not callable(name) and name not in _NAMES:
        raise InputError(f"cotangent={name!r} must be a callable or one of {', '.join(_NAMES)}")
    if draws is not None and draws < 1:
        raise InputError(f"draws={draws} must be at least 1")
    if tokens not in ("sum", "mean"):
        raise InputError(f"tokens={tokens!r} must be 'sum' or 'mean'")


def choose_cotangent(
    model: nn.Module,
    name: CotangentName | Cotangent,
    draws: int | None,
    seed: int,
    tokens: TokenReduction,
    labels: bool = False,
) -> tuple[Cotangent, str, int]:
    """The cotangent, its name and the draws a sample.

    - `labels`: the task's own (empirical Fisher); 1 draw, unless `draws` says otherwise;
    - `sampled`: labels drawn from the model's own predictions (true Fisher, needs no labels); 2 draws;
    - `embedding`: random projections of the pooled, normalised embedding, for models without logits; 2 draws;
    - `auto`: `sampled` where the model has logits, else `embedding`; with `labels`, which says that there are some and
      that the sign of a gradient counts, `labels` where the model has logits;
    - a callable, such as `capture.cotangent.UserLoss(my_loss, reduction="mean")`: the user's own; 1 draw.

    `tokens` says whether a sample's token losses are summed (`sum`) or averaged (`mean`).
    """
    if not isinstance(name, str):
        return name, "user", draws or 1
    if name == "auto":
        name = ("labels" if labels else "sampled") if has_logits(model) else "embedding"
    draws = draws or (1 if name == "labels" else 2)
    if name == "embedding":
        if has_logits(model):
            raise InputError(
                f"cotangent 'embedding' needs a model without a head; {type(model).__name__} has one, use 'sampled'"
            )
        return EmbeddingProbe(seed), name, draws
    if not has_logits(model):
        raise InputError(
            f"cotangent {name!r} needs a model with logits; {type(model).__name__} has none, use 'embedding'"
        )
    source: Literal["given", "sampled"] = "given" if name == "labels" else "sampled"
    return NegativeLogLikelihood(source, is_causal(model), model.config, seed, tokens), name, draws


def has_logits(model: nn.Module) -> bool:
    """Whether the model has a task head: transformers names its classes after what they are for, or it writes text."""
    return model.base_model is not model or model.can_generate() or bool(re.search("For[A-Z]", type(model).__name__))


def is_causal(model: nn.Module) -> bool:
    """Whether logits at a position predict the next token: class names do not tell (`BertLMHeadModel` does)."""
    return model.can_generate()
