"""Tokenised splits, batches of like length, accuracy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from benchmarks.tasks.debian_sections.data import Record, Task

MAX_LENGTH = 64


@dataclass(frozen=True)
class Encoded:
    """`ids[s]` are the tokens of sample `s`, `labels` `[S]` int64."""

    ids: list[list[int]]
    labels: torch.Tensor
    pad: int = 0

    @property
    def mean_length(self) -> float:
        """Tokens of the mean sample, special tokens included."""
        return sum(map(len, self.ids)) / len(self.ids)


def encode(records: Sequence[Record], task: Task, tokenizer) -> Encoded:
    """Tokenise to at most 64 tokens, without padding."""
    ids = tokenizer([r.text for r in records], truncation=True, max_length=MAX_LENGTH)["input_ids"]
    return Encoded(ids, torch.tensor([task.label(r) for r in records]), tokenizer.pad_token_id)


def batches(
    data: Encoded, size: int, generator: torch.Generator | None = None
) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
    """Model inputs and labels of batches of like length; a generator shuffles within lengths and among batches."""
    order = list(range(len(data.ids)))
    if generator is not None:
        order = torch.randperm(len(order), generator=generator).tolist()
    order.sort(key=lambda s: len(data.ids[s]))  # stable: the shuffle survives within a length
    starts = list(range(0, len(order), size))
    if generator is not None:
        starts = [starts[i] for i in torch.randperm(len(starts), generator=generator).tolist()]
    for start in starts:
        rows = order[start : start + size]
        yield _collate([data.ids[s] for s in rows], data.pad), data.labels[torch.tensor(rows)]


def _collate(ids: list[list[int]], pad: int) -> dict[str, torch.Tensor]:
    lengths = torch.tensor([len(row) for row in ids])
    width = int(lengths.max())
    inputs = {"input_ids": torch.tensor([row + [pad] * (width - len(row)) for row in ids])}
    # Without padding there is no mask either: attention then takes its fast path.
    if int(lengths.min()) < width:
        inputs["attention_mask"] = (torch.arange(width) < lengths[:, None]).long()
    return inputs


@torch.inference_mode()
def accuracy(model: nn.Module, data: Encoded, size: int = 128) -> float:
    """Share of samples whose largest logit is at their label; the model is left in eval mode."""
    model.eval()
    device = next(model.parameters()).device
    right = 0
    for inputs, labels in batches(data, size):
        logits = model(**{key: value.to(device) for key, value in inputs.items()}).logits
        right += int((logits.argmax(-1).cpu() == labels).sum())
    return right / len(data.ids)
