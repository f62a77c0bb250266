"""From whatever a user calls data to tokenised samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from pyprune.core.batches import Samples
from pyprune.core.errors import InputError
from pyprune.data.passages import read_passages

_INPUTS = ("input_ids", "token_type_ids", "attention_mask")


def to_samples(data: Any, tokenizer: Any, length: int) -> Samples:
    """Tokenise `data` to at most `length` tokens a sample.

    `data` is one of: `Samples` (returned as they are), a path to a text or `.jsonl` file, an iterable of strings, of
    `(string, label)` pairs, or of mappings with `text` or `input_ids` and optionally `label` / `labels` (rows of a
    `datasets.Dataset`; a tokenizer's output and the batches of a `DataLoader` are taken apart by their attention mask).
    A label is a number, one integer a token, or a vector (multi-label targets, `[start, end]` of an answer).
    Raises InputError for anything else, naming what was found.
    """
    if isinstance(data, Samples):
        return data
    if isinstance(data, (str, Path)):
        data = read_passages(data)
    if isinstance(data, Mapping):
        data = [data]
    if not isinstance(data, Iterable):
        raise InputError(f"data: expected a path or an iterable of texts, found {type(data).__name__}")
    rows = [sample for row in data for sample in _samples(row)]
    texts = [row for row, _ in rows if isinstance(row, str)]
    inputs = [row for row, _ in rows if not isinstance(row, str)]
    labels = [label for _, label in rows if label is not None]
    if texts and inputs:
        raise InputError("data: rows with text and rows with input_ids are mixed")
    if texts:
        inputs, truncated = _encode(texts, tokenizer, length)
    else:
        truncated = sum(len(row["input_ids"]) > length for row in inputs)
        if len(labels) == len(inputs):
            labels = [y[:length] if _of_tokens(y, row) else y for y, row in zip(labels, inputs, strict=True)]
        inputs = [{key: value[:length] for key, value in row.items()} for row in inputs]
    pad = getattr(tokenizer, "pad_token_id", None) or 0
    return Samples(inputs, labels or None, {"input_ids": pad}, truncated)


def _encode(texts: list[str], tokenizer: Any, length: int) -> tuple[list[dict[str, torch.Tensor]], int]:
    if tokenizer is None:
        raise InputError("data: texts need a tokenizer; pass tokenizer= (or a model directory that has one)")
    whole = tokenizer(texts, truncation=False, verbose=False)["input_ids"]
    cut = tokenizer(texts, truncation=True, max_length=length)["input_ids"]
    # Segment ids are all 0 for single texts, which is what models assume without them.
    return [{"input_ids": torch.tensor(row, dtype=torch.int64)} for row in cut], sum(len(row) > length for row in whole)


def _samples(row: Any) -> Iterator[tuple[str | dict[str, torch.Tensor], torch.Tensor | None]]:
    """Samples of one row of data, as text or tokens, and their labels."""
    if isinstance(row, str):
        yield row, None
    elif isinstance(row, tuple) and len(row) == 2 and isinstance(row[0], str):
        yield row[0], as_label(row[1])
    elif isinstance(row, Mapping) and "input_ids" in row:
        given = {key: row[key] for key in _INPUTS if key in row}
        labels = row.get("labels", row.get("label"))
        if len(given["input_ids"]) and as_tensor("input_ids", given["input_ids"][0]).dim():
            for b in range(len(given["input_ids"])):
                yield _unpadded({key: value[b] for key, value in given.items()}, None if labels is None else labels[b])
        else:
            yield _unpadded(given, labels)
    elif isinstance(row, Mapping) and isinstance(row.get("text"), str):
        yield row["text"], as_label(row.get("labels", row.get("label")))
    else:
        raise InputError(
            f"data: cannot use a row of type {type(row).__name__}; give texts or mappings with text or input_ids"
        )


def _unpadded(row: Mapping[str, Any], label: Any) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
    inputs, label = {key: as_tensor(key, value).long() for key, value in row.items()}, as_label(label)
    if len(shapes := {tuple(value.shape) for value in inputs.values()}) > 1:
        raise InputError(f"data: {', '.join(inputs)} of one sample differ in length: {sorted(shapes)}")
    mask = inputs.pop("attention_mask", None)
    if mask is None:
        return inputs, label
    if label is not None and _of_tokens(label, inputs):
        label = label[mask.bool()]
    return {key: value[mask.bool()] for key, value in inputs.items()}, label


def as_label(value: Any) -> torch.Tensor | None:
    if value is None:
        return None
    label = as_tensor("label", value)
    return label if label.is_floating_point() else label.long()


def _of_tokens(label: torch.Tensor, row: Mapping[str, torch.Tensor]) -> bool:
    return label.shape == row["input_ids"].shape and not label.is_floating_point()


def as_tensor(name: str, value: Any) -> torch.Tensor:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"data: {name} must be numbers, found {type(value).__name__} {value!r:.40}") from None
