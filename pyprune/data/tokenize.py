"""From whatever a user calls data to tokenised samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from pyprune.core.batches import Samples
from pyprune.core.errors import InputError
from pyprune.data.passages import read_passages


def to_samples(data: Any, tokenizer: Any, length: int, model_type: str | None = None) -> Samples:
    """Tokenise `data` to at most `length` tokens a sample.

    `data` is one of: `Samples` (returned as they are), a path to a text or `.jsonl` file, an iterable of strings, of
    `(string, label)` pairs, or of mappings with `text` or `input_ids` and optionally `label` / `labels` (rows of a
    `datasets.Dataset`; batches of a `DataLoader` are taken apart by their attention mask).
    Raises InputError for anything else, naming what was found.
    """
    if isinstance(data, Samples):
        return data
    if isinstance(data, (str, Path)):
        return to_samples(read_passages(data), tokenizer, length)
    if not isinstance(data, Iterable):
        raise InputError(f"data: expected a path or an iterable of texts, found {type(data).__name__}")
    texts: list[str] = []
    inputs: list[dict[str, torch.Tensor]] = []
    labels: list[Any] = []
    for row in data:
        if isinstance(row, str):
            texts.append(row)
        elif isinstance(row, tuple) and len(row) == 2 and isinstance(row[0], str):
            texts.append(row[0])
            labels.append(row[1])
        elif isinstance(row, Mapping) and "input_ids" in row:
            for tokens, label in _unbatched(row):
                inputs.append(tokens)
                labels += [] if label is None else [label]
        elif isinstance(row, Mapping) and isinstance(row.get("text"), str):
            texts.append(row["text"])
            label = row.get("labels", row.get("label"))
            labels += [] if label is None else [label]
        else:
            raise InputError(
                f"data: cannot use a row of type {type(row).__name__}; give texts or mappings with text or input_ids"
            )
    if texts and inputs:
        raise InputError("data: rows with text and rows with input_ids are mixed")
    truncated = 0
    if texts:
        if tokenizer is None:
            raise InputError("data: texts need a tokenizer; the model's directory has none, pass tokenizer=")
        encoded = tokenizer(texts, truncation=False, verbose=False)
        truncated = sum(len(ids) > length for ids in encoded["input_ids"])
        encoded = tokenizer(texts, truncation=True, max_length=length)
        ids = encoded["input_ids"]
        # Segment ids are all 0 for single texts, which is what models assume without them.
        inputs = [{"input_ids": torch.tensor(row)} for row in ids]
    else:
        truncated = sum(len(row["input_ids"]) > length for row in inputs)
        inputs = [{key: value[:length] for key, value in row.items()} for row in inputs]
    pad = getattr(tokenizer, "pad_token_id", None) or 0
    tensors = [
        torch.as_tensor(label)[..., :length] if torch.as_tensor(label).dim() else torch.as_tensor(label)
        for label in labels
    ]
    return Samples(inputs, tensors or None, {"input_ids": pad}, truncated)


def _unbatched(row: Mapping[str, Any]) -> Iterable[tuple[dict[str, torch.Tensor], Any]]:
    """Samples of one mapping: a single sample (`input_ids` `[T]`) or a padded batch (`[B, T]`)."""
    label = row.get("labels", row.get("label"))
    keys = [key for key in ("input_ids", "token_type_ids") if key in row]
    tensors = {key: torch.as_tensor(row[key]) for key in keys}
    mask = (
        torch.as_tensor(row["attention_mask"]).bool()
        if "attention_mask" in row
        else torch.ones_like(tensors["input_ids"]).bool()
    )
    if tensors["input_ids"].dim() == 1:
        yield {key: value[mask] for key, value in tensors.items()}, label
        return
    for b in range(tensors["input_ids"].shape[0]):
        own = None if label is None else torch.as_tensor(label)[b]
        if own is not None and own.dim() == 1:
            own = own[mask[b]]
        yield {key: value[b][mask[b]] for key, value in tensors.items()}, own
