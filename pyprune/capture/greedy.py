"""What a model itself says of its inputs: text for its decoder to read where the data has none, so no labels."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from pyprune.core.batches import Samples, batching

# Longer outputs say little more of what a unit is worth, and cost a pass each token.
_NEW_TOKENS = 32


@torch.no_grad()
def with_greedy_outputs(model: nn.Module, samples: Samples, name: str) -> Samples:
    """`samples` whose input `name` is what the model puts out for the others: a start token and at most 32 greedy ones.

    A KV cache is used; what follows an end token is cut off. Samples travel with those of the same shapes.
    """
    from transformers import GenerationMixin

    generative: Any = model
    rows: list[dict[str, torch.Tensor]] = [dict(row) for row in samples.inputs]
    settings = {"max_new_tokens": _NEW_TOKENS, "do_sample": False, "num_beams": 1, "use_cache": True}
    ends = _end_tokens(model)
    # Models of speech cut long sound into pieces in a `generate` of their own; a plain pass is meant here.
    plain = getattr(generative.config, "is_encoder_decoder", False)
    generate = partial(GenerationMixin.generate, generative) if plain else generative.generate
    training = model.training
    model.eval()
    try:
        for batch in samples.batches(**{**batching(model), "max_padding": 0.0}):
            found = generate(**batch.on(model).inputs, **settings)
            for s, tokens in zip(batch.index.tolist(), found.cpu(), strict=True):
                rows[s][name] = _ended(tokens, ends)
    finally:
        model.train(training)
    return replace(samples, inputs=rows)


def _end_tokens(model: Any) -> torch.Tensor:
    found: list[int] = []
    for config in (model.generation_config, model.config, getattr(model.config, "text_config", None)):
        for name in ("eos_token_id", "sep_token_id"):
            token = getattr(config, name, None)
            found += token if isinstance(token, list) else [token] if token is not None else []
    return torch.tensor(found, dtype=torch.int64)


def _ended(tokens: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """`tokens` up to the first end token, the start left out of account: it may be one."""
    found = torch.isin(tokens[1:], ends).nonzero().flatten()
    return tokens[: int(found[0]) + 2] if len(found) else tokens
