"""Tokenised samples and how they travel through a model: in batches of like length."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn

from pyprune.core.errors import InputError


@dataclass(frozen=True)
class Batch:
    """`inputs` are the model's keyword arguments, `[B, T]` each; `index` `[B]` names the samples they came from.

    `lengths` `[B]` are real tokens. `inputs["attention_mask"]` is absent when nothing is padded, which lets attention
    run without a mask. `labels` is `[B]`, `[B, L]`, or `[B, T]` padded with -100 when every token has one, or None.
    """

    inputs: dict[str, torch.Tensor]
    index: torch.Tensor
    lengths: torch.Tensor
    labels: torch.Tensor | None = None

    @property
    def token_mask(self) -> torch.Tensor:
        """`[B, T]` bool, True at real tokens (padding stands on the right)."""
        positions = torch.arange(next(iter(self.inputs.values())).shape[1], device=self.lengths.device)
        return positions < self.lengths[:, None]

    def real(self, x: torch.Tensor) -> torch.Tensor:
        """The rows `[N, n]` of `x` `[B, T, n]` at real tokens; all rows of a block that other tokens pass."""
        mask = self.token_mask
        return x[mask] if x.shape[1] == mask.shape[1] else x.flatten(0, 1)

    def to(self, device: torch.device | str) -> Batch:
        return Batch(
            {k: v.to(device) for k, v in self.inputs.items()},
            self.index,
            self.lengths.to(device),
            None if self.labels is None else self.labels.to(device),
        )


@dataclass
class Samples:
    """Tokenised samples without padding: `inputs[s][key]` is `[T_s]` int64.

    `labels[s]` is a scalar, `[T_s]` integers, or a vector of one size for all (multi-label targets, the start and end
    of an answer). `truncated` counts the samples that were cut to the length asked for.
    """

    inputs: list[dict[str, torch.Tensor]]
    labels: list[torch.Tensor] | None = None
    pad: dict[str, int] = field(default_factory=dict)
    truncated: int = 0

    def __post_init__(self) -> None:
        if not self.inputs:
            raise InputError("data: no samples")
        if any(length == 0 for length in self.lengths.tolist()):
            raise InputError("data: a sample has no tokens")
        if any(row.keys() != self.inputs[0].keys() for row in self.inputs):
            raise InputError(f"data: samples differ in their inputs; the first has {', '.join(self.inputs[0])}")
        if self.labels is None:
            return
        if len(self.labels) != len(self.inputs):
            raise InputError(f"data: {len(self.inputs)} samples but {len(self.labels)} labels")
        if not self.token_labels and any(label.shape != self.labels[0].shape for label in self.labels):
            raise InputError("data: labels must be one per sample, one per token, or vectors of one size")

    @cached_property
    def token_labels(self) -> bool:
        """Whether every token has a label: integers, as many as the sample has tokens."""
        if self.labels is None:
            return False
        rows = zip(self.labels, self.lengths.tolist(), strict=True)
        return all(row.shape == (length,) and not row.is_floating_point() for row, length in rows)

    def __len__(self) -> int:
        return len(self.inputs)

    @cached_property
    def lengths(self) -> torch.Tensor:
        """`[S]` int64, tokens of each sample."""
        return torch.tensor([len(next(iter(x.values()))) for x in self.inputs], dtype=torch.int64)

    def first(self, count: int) -> Samples:
        """The first `count` samples in the data's own order."""
        labels = None if self.labels is None else self.labels[:count]
        return Samples(self.inputs[:count], labels, self.pad)

    def batches(self, max_tokens: int = 4096, max_padding: float = 0.0, pad: int | None = None) -> list[Batch]:
        """Batches of like length, longest first (so that memory peaks at once, not at the end).

        A batch is closed when it would exceed `max_tokens` with its padding, or when more than the share `max_padding`
        of it would be padding; with 0 every batch holds samples of one length and needs no attention mask. `pad` is the
        padding token in place of the samples' own.
        """
        lengths = self.lengths.tolist()
        order = sorted(range(len(lengths)), key=lambda s: -lengths[s])
        pads = self.pad if pad is None else {**self.pad, "input_ids": pad}
        batches: list[Batch] = []
        for group in _close(order, lengths, max_tokens, max_padding):
            batches.append(self._collate(group, pads))
        return batches

    def _collate(self, group: Sequence[int], pads: Mapping[str, int]) -> Batch:
        lengths = self.lengths[torch.tensor(group)]
        width = int(lengths.max())
        inputs = {
            key: torch.stack([_padded(self.inputs[s][key], width, pads.get(key, 0)) for s in group])
            for key in self.inputs[group[0]]
        }
        if int(lengths.min()) < width:
            inputs["attention_mask"] = (torch.arange(width) < lengths[:, None]).long()
        labels = None
        if self.labels is not None:
            rows = [self.labels[s] for s in group]
            labels = torch.stack([_padded(row, width, -100) for row in rows] if self.token_labels else rows)
        return Batch(inputs, torch.tensor(group), lengths, labels)


def _padded(row: torch.Tensor, width: int, value: int) -> torch.Tensor:
    return torch.nn.functional.pad(row, (0, width - row.numel()), value=value)


def _close(order: Sequence[int], lengths: Sequence[int], max_tokens: int, max_padding: float) -> Iterator[list[int]]:
    group: list[int] = []
    tokens = 0
    for s in order:
        if group:
            area = lengths[group[0]] * (len(group) + 1)
            if area > max_tokens or area - tokens - lengths[s] > max_padding * area:
                yield group
                group, tokens = [], 0
        group.append(s)
        tokens += lengths[s]
    yield group


def batching(model: nn.Module) -> dict[str, Any]:
    """How samples are batched on the model's device.

    Without padding on CPUs, where small batches cost nothing; a GPU would be starved by batches of one length, and
    takes up to a tenth of padding for large ones.
    """
    # Decoders that classify look for the model's own padding token to find where a sample ends.
    own = getattr(getattr(model, "config", None), "pad_token_id", None)
    pad = {"pad": own if own is not None and own >= 0 else None}  # old configs say -1 for none
    if next(model.parameters()).device.type == "cpu":
        return {"max_tokens": 4096, "max_padding": 0.0, **pad}
    return {"max_tokens": 16384, "max_padding": 0.1, **pad}
