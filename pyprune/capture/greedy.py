"""What a model says of its inputs, token by token: text for its decoder where the data has none, so no labels."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from pyprune.core.batches import Samples, batching
from pyprune.core.errors import InputError

# Longer outputs say little more of what a unit is worth, and cost a pass each token.
_NEW_TOKENS = 32


class Decoded(NamedTuple):
    """What a model decodes for one sample.

    `tokens` `[start + N]` int64 begin with what the decoder was given (a start token, or the sample's own text), and
    `peaks` `[N]` are the largest logits of the N steps, each of which chose a token.
    """

    tokens: torch.Tensor
    peaks: torch.Tensor

    def before(self, step: int) -> torch.Tensor:
        """The tokens that the model reads at this step, counted from 0."""
        return self.tokens[: len(self.tokens) - len(self.peaks) + step]


def with_greedy_outputs(model: nn.Module, samples: Samples, name: str) -> Samples:
    """`samples` whose input `name` is what the model puts out for the others: a start token and at most 32 greedy ones.

    A KV cache is used; what follows an end token is cut off. Samples travel with those of the same shapes.
    """
    decoded = decode(model, samples, _NEW_TOKENS)
    rows = [{**row, name: found.tokens} for row, found in zip(samples.inputs, decoded, strict=True)]
    return replace(samples, inputs=rows, decoded=name)


@torch.no_grad()
def decode(model: nn.Module, samples: Samples, steps: int) -> list[Decoded]:
    """At most `steps` greedy tokens for each of `samples`, up to the first end token, with a KV cache.

    InputError for a model that generates nothing.
    """
    import transformers

    generative: Any = model
    if not generative.can_generate():
        raise InputError(f"{type(model).__name__} has no generate: it puts out everything at once")
    found: list[Decoded | None] = [None] * len(samples)
    settings = {"max_new_tokens": steps, "do_sample": False, "num_beams": 1, "use_cache": True}
    settings |= {"num_return_sequences": 1, "output_logits": True, "return_dict_in_generate": True}
    ends = _end_tokens(model)
    # Models of speech cut long sound into pieces in a `generate` of their own; a plain pass is meant here.
    plain = getattr(generative.config, "is_encoder_decoder", False)
    generate = partial(transformers.GenerationMixin.generate, generative) if plain else generative.generate
    training = model.training
    model.eval()
    try:
        for batch in samples.batches(**{**batching(model), "max_padding": 0.0}):
            written = generate(**batch.on(model).inputs, **settings)
            peaks = torch.stack([step.amax(-1) for step in written.logits], 1).float().cpu()
            for s, tokens, own in zip(batch.index.tolist(), written.sequences.cpu(), peaks, strict=True):
                given = len(tokens) - len(own)
                ended = torch.isin(tokens[given:], ends).nonzero().flatten()
                count = int(ended[0]) + 1 if len(ended) else len(own)
                found[s] = Decoded(tokens[: given + count], own[:count])
    finally:
        model.train(training)
    return [one for one in found if one is not None]


def _end_tokens(model: Any) -> torch.Tensor:
    found: list[int] = []
    for config in (model.generation_config, model.config, getattr(model.config, "text_config", None)):
        for name in ("eos_token_id", "sep_token_id"):
            token = getattr(config, name, None)
            found += token if isinstance(token, list) else [token] if token is not None else []
    return torch.tensor(found, dtype=torch.int64)
