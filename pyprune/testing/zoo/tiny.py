"""One row of the zoo."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# What configs of models that read text share.
TOKENS = {"vocab_size": 99, "max_position_embeddings": 40, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}


@dataclass(frozen=True)
class Tiny:
    """A model type, the values of its config, and the transformers classes that it is built as (auto classes or not).

    The first of `heads` goes through every plan of the matrix, the others through one.
    """

    model_type: str
    config: dict[str, Any]
    heads: tuple[str, ...] = ("AutoModel",)
