"""Calibration data for a model: text in its own tokens, no longer and no stranger than it takes."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pyprune.capture.collect import frozen
from pyprune.core.batches import Samples
from pyprune.core.errors import InputError
from pyprune.data.passages import python_reference, read_passages, split
from pyprune.data.tokenize import to_samples
from pyprune.models.inputs import config_with, example_inputs

# Longer inputs are cut: language models take positions far beyond what calibration profits from.
_MOST_TOKENS = 2048


def most_tokens(model: nn.Module, tokenizer: Any) -> int:
    """The longest sample, in tokens, that the model's positions and its tokenizer take (at most 2,048)."""
    positions = getattr(model.config, "max_position_embeddings", _MOST_TOKENS)
    # RoBERTa counts positions from its padding index on.
    offset = (getattr(model.config, "pad_token_id", None) or 0) + 1 if model.config.model_type == "roberta" else 0
    return max(1, min(positions - offset, getattr(tokenizer, "model_max_length", None) or _MOST_TOKENS, _MOST_TOKENS))


def calibration_data(
    model: nn.Module, tokenizer: Any, data: Any = None, samples: int = 512, seed: int = 0, runs: bool = True
) -> tuple[Samples, Samples | None]:
    """Tokenised calibration samples and, for text, held-out samples that the calibration does not see.

    `data` None means the English prose that CPython ships; a path is a text or `.jsonl` file; both are split with
    `seed`. Anything else that `pyprune.data` takes is calibration data as a whole, and nothing is held out.
    InputError for a model that does not run on text alone, unless the data is not to go through it (`runs`).
    """
    if runs and (reason := why_not_text(model)):
        raise InputError(
            f"{type(model).__name__} does not run on text alone ({reason}), and there is no other calibration data: "
            "slice it by a plan of your own with pyprune.apply and pyprune.save; pyprune verify shows that it can be "
            "sliced"
        )
    length = most_tokens(model, tokenizer)
    if data is None or isinstance(data, (str, Path)):
        passages = python_reference() if data is None else read_passages(data)
        texts = split(passages, samples, seed)
    else:
        texts = (data,)
    known = config_with(model.config, "vocab_size").vocab_size
    made = [to_samples(part, tokenizer, length) for part in texts]
    for part in made:  # on a GPU such a token would take the whole process down
        largest = max(int(row["input_ids"].max()) for row in part.inputs)
        if largest >= known:
            raise InputError(f"data: token {largest} is beyond the model's {known}: is the tokenizer another model's?")
    return made[0], made[1] if len(made) == 2 else None


@torch.no_grad()
def why_not_text(model: nn.Module) -> str:
    """Why `model` does not run on text alone; empty when it does.

    A few tokens are tried: whether a model wants an image, sound or decoder inputs besides, its forward does not tell.
    """
    if "input_ids" not in inspect.signature(model.forward).parameters:
        return "it takes no input_ids"
    device = next(model.parameters()).device
    made = example_inputs(model, 1, 4)
    try:
        with frozen(model):
            model(**{name: made[name].to(device) for name in ("input_ids", "attention_mask") if name in made})
    except (ValueError, TypeError, AttributeError, RuntimeError) as error:
        return str(error).strip().split("\n")[0]
    return ""
