"""Samples of whatever a model takes, and how they travel through it: in batches of like length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn

from pyprune.core.errors import InputError

# The inputs that are text, and the masks of their padding.
_TEXTS = {"input_ids": "attention_mask", "decoder_input_ids": "decoder_attention_mask"}


@dataclass(frozen=True)
class Batch:
    """`inputs` are the model's keyword arguments, `[B, ...]` each; `index` `[B]` names the samples they came from.

    `lengths` `[B]` are real tokens (`Samples.lengths`). Masks of padding are absent when nothing is padded, which lets
    attention run without. `labels` is `[B]`, `[B, L]`, or `[B, T]` padded with -100 when every token has one, or None.
    """

    inputs: dict[str, torch.Tensor]
    index: torch.Tensor
    lengths: torch.Tensor
    labels: torch.Tensor | None = None

    @property
    def token_mask(self) -> torch.Tensor:
        """`[B, T]` bool, True at the real tokens that `lengths` counts (padding stands on the right)."""
        text = next((self.inputs[name] for name in _TEXTS if name in self.inputs), None)
        width = int(self.lengths.max()) if text is None else text.shape[1]
        return torch.arange(width, device=self.lengths.device) < self.lengths[:, None]

    def padding(self, width: int) -> torch.Tensor | None:
        """`[B, width]` bool, True at real tokens of a block or an output that holds `width` a sample; None: all are.

        The mask is the decoder's where it reads text of its own. Tokens of another number are no text: of images, of
        tables, of queries, none of which is padding.
        """
        name = "decoder_input_ids" if "decoder_input_ids" in self.inputs else "input_ids"
        mask = self.inputs.get(_TEXTS[name])
        return mask.bool() if mask is not None and mask.shape[1] == width else None

    def mask(self, width: int) -> torch.Tensor:
        """`padding(width)`, True everywhere where there is none."""
        mask = self.padding(width)
        return (
            torch.ones(len(self.index), width, dtype=torch.bool, device=self.lengths.device) if mask is None else mask
        )

    def real(self, x: torch.Tensor) -> torch.Tensor:
        """The rows `[N, n]` of `x` `[B, T, n]` at real tokens."""
        mask = self.padding(x.shape[1])
        return x.flatten(0, 1) if mask is None else x[mask]

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Batch:
        """On `device`, and what is no whole number in `dtype`."""
        return Batch(
            {k: v.to(device, dtype if v.is_floating_point() else None) for k, v in self.inputs.items()},
            self.index,
            self.lengths.to(device),
            None if self.labels is None else self.labels.to(device),
        )

    def on(self, model: nn.Module) -> Batch:
        """On the device of `model`, and in its floating-point type."""
        first = next(model.parameters())
        return self.to(first.device, first.dtype)


@dataclass
class Samples:
    """Samples without padding: `inputs[s]` are tensors by the names that the model's forward has for them.

    Text is `[T_s]` int64 (`input_ids`, `decoder_input_ids` and what belongs to their tokens); anything else has the
    shape that the model wants without a batch (`pixel_values` `[C, H, W]`).
    `labels[s]` is a scalar, `[T_s]` integers, or a vector of one size for all (multi-label targets, the start and end
    of an answer). `truncated` counts the samples that were cut to the length asked for, `skipped` names the files that
    could not be read. `tokens` are those that a sample without text becomes, an image for example. `decoded` is the
    name of the text that the model made itself, if it did.
    """

    inputs: list[dict[str, torch.Tensor]]
    labels: list[torch.Tensor] | None = None
    pad: dict[str, int] = field(default_factory=dict)
    truncated: int = 0
    skipped: tuple[str, ...] = ()
    tokens: int = 1
    decoded: str = ""

    def __post_init__(self) -> None:
        if not self.inputs:
            raise InputError("data: no samples")
        if any(row.keys() != self.inputs[0].keys() for row in self.inputs):
            raise InputError(f"data: samples differ in their inputs; the first has {', '.join(self.inputs[0])}")
        if any(tensor.numel() == 0 for row in self.inputs for tensor in row.values()):
            raise InputError("data: a sample has no tokens")
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
        """`[S]` int64, tokens of each sample: of its text, the decoder's if that is all, or else `tokens`."""
        text = next((name for name in _TEXTS if name in self.inputs[0]), None)
        return torch.tensor([len(row[text]) if text else self.tokens for row in self.inputs], dtype=torch.int64)

    @cached_property
    def plain(self) -> bool:
        """Whether samples are one text and no more: only then does padding mean the same to every block."""
        return all(
            "input_ids" in row and {tensor.shape for tensor in row.values()} == {row["input_ids"].shape}
            for row in self.inputs
        )

    @cached_property
    def rigid_shapes(self) -> list[tuple[tuple[int, ...], ...]]:
        """The shapes of what cannot be padded, sample by sample: only those of equal ones fit into a batch."""
        return [tuple(tuple(t.shape) for t in row.values() if t.dim() != 1) for row in self.inputs]

    def first(self, count: int) -> Samples:
        """The first `count` samples in the data's own order."""
        labels = None if self.labels is None else self.labels[:count]
        return Samples(self.inputs[:count], labels, self.pad, tokens=self.tokens, decoded=self.decoded)

    def batches(
        self, max_tokens: int = 4096, max_padding: float = 0.0, pad: int | None = None, max_values: int = 1 << 21
    ) -> list[Batch]:
        """Batches of like length, longest first (so that memory peaks at once, not at the end).

        A batch is closed when it would exceed `max_tokens` with its padding, when its images and the like would exceed
        `max_values` numbers, or when more than the share `max_padding` of it would be padding; with 0 every batch holds
        samples of one length and needs no attention mask. Samples of more than one text travel with those of the same
        shapes alone. `pad` is the padding token in place of the samples' own.
        """
        lengths = self.lengths.tolist()
        shapes = [() if self.plain else tuple(tuple(row[name].shape) for name in self.inputs[0]) for row in self.inputs]
        values = [sum(t.numel() for t in row.values() if t.is_floating_point()) for row in self.inputs]
        counted = any(name in self.inputs[0] for name in _TEXTS)
        order = sorted(range(len(lengths)), key=lambda s: (-lengths[s], shapes[s]))
        batches: list[Batch] = []
        group: list[int] = []
        tokens = 0
        for s in order:
            if group:
                area = lengths[group[0]] * (len(group) + 1)
                padded = area - tokens - lengths[s] > max_padding * area
                large = (counted and area > max_tokens) or values[s] * (len(group) + 1) > max_values
                if padded or large or shapes[s] != shapes[group[0]]:
                    batches.append(self.collate(group, pad))
                    group, tokens = [], 0
            group.append(s)
            tokens += lengths[s]
        return [*batches, self.collate(group, pad)]

    def collate(self, group: Sequence[int], pad: int | None = None) -> Batch:
        """The samples of `group` as one batch: text is padded, with its mask where it differs in length.

        InputError where anything else differs in shape.
        """
        pads = self.pad if pad is None else {**self.pad, **dict.fromkeys(_TEXTS, pad)}
        inputs: dict[str, torch.Tensor] = {}
        masks: dict[str, torch.Tensor] = {}
        for key in self.inputs[group[0]]:
            rows = [self.inputs[s][key] for s in group]
            if len(shapes := {row.shape for row in rows}) > 1:
                if rows[0].dim() != 1:
                    raise InputError(
                        f"data: {key} of samples in one batch differ in shape: {sorted(map(list, shapes))}"
                    )
                counts = torch.tensor([len(row) for row in rows])
                width = int(counts.max())
                rows = [_padded(row, width, pads.get(key, 0)) for row in rows]
                if key in _TEXTS:
                    masks[_TEXTS[key]] = (torch.arange(width) < counts[:, None]).long()
            inputs[key] = torch.stack(rows)
        lengths = self.lengths[torch.tensor(group)]
        labels = None
        if self.labels is not None:
            targets = [self.labels[s] for s in group]
            width = int(lengths.max())
            labels = torch.stack([_padded(row, width, -100) for row in targets] if self.token_labels else targets)
        return Batch({**masks, **inputs}, torch.tensor(group), lengths, labels)


def _padded(row: torch.Tensor, width: int, value: int) -> torch.Tensor:
    return torch.nn.functional.pad(row, (0, width - row.numel()), value=value)


def batching(model: nn.Module) -> dict[str, Any]:
    """How samples are batched on the model's device.

    Without padding on CPUs, where small batches cost nothing; a GPU would be starved by batches of one length, and
    takes up to a tenth of padding for large ones. 2^21 numbers are 13 images of 224 pixels on a side.
    """
    # Decoders that classify look for the model's own padding token to find where a sample ends.
    own = getattr(getattr(model, "config", None), "pad_token_id", None)
    pad = {"pad": own if own is not None and own >= 0 else None}  # old configs say -1 for none
    if next(model.parameters()).device.type == "cpu":
        return {"max_tokens": 4096, "max_padding": 0.0, "max_values": 1 << 21, **pad}
    return {"max_tokens": 16384, "max_padding": 0.1, "max_values": 1 << 23, **pad}
