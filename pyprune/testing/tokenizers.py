"""Tokenizers for tests: small ones, trained on the spot on the topics of Python's own help."""

from __future__ import annotations

import json
from pydoc_data.topics import topics
from typing import Any

LINES = [line.strip() for topic in list(topics.values())[:30] for line in topic.splitlines() if line.strip()][:500]


def trained(model: Any, trainer: Any, pre_tokenizer: Any, normalizer: Any = None) -> dict[str, Any]:
    """What `tokenizer.json` says of `model` (of the library `tokenizers`) after training on `LINES`."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.train_from_iterator(LINES, trainer)
    return json.loads(tokenizer.to_str())["model"]
