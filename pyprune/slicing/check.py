"""Do two models agree? Inputs made from a config, and the distance between two outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch

from pyprune.core.errors import MismatchError


def example_inputs(
    config: Any, batch: int = 2, length: int = 12, seed: int = 0, padding: Literal["right", "left"] = "right"
) -> dict[str, torch.Tensor]:
    """Random `input_ids` and `attention_mask`, both `[batch, length]` int64, each row with more padding than the last.

    Row 0 is full. Padded positions hold the config's padding token. `length` is cut to what the positions allow.
    """
    # Old configs say -1 for no padding token.
    vocabulary, pad = config.vocab_size, max(getattr(config, "pad_token_id", None) or 0, 0)
    positions = getattr(config, "max_position_embeddings", 2 * length)
    # Position tables may reserve the places up to a padding token among the first, so stay that far below their size.
    length = min(length, positions - pad - 1 if pad < positions // 2 else positions)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, vocabulary - 1, (batch, length), generator=generator)
    ids = ids + (ids >= pad)
    padded = torch.arange(batch)[:, None] * length // (2 * batch)
    position = torch.arange(length)
    mask = position < length - padded if padding == "right" else position >= padded
    return {"input_ids": torch.where(mask, ids, pad), "attention_mask": mask.long()}


def max_difference(first: Any, second: Any) -> float:
    """Largest absolute difference over all tensors of two model outputs; inf when either holds NaN.

    Key/value caches are not compared. MismatchError when the outputs do not hold the same tensors in the same shapes.
    """
    a, b = dict(_tensors(first, "output")), dict(_tensors(second, "output"))
    if not a or a.keys() != b.keys():
        raise MismatchError(f"the outputs hold different tensors: {sorted(a)} and {sorted(b)}")
    worst = 0.0
    for name in a:
        x, y = a[name].detach(), b[name].detach()
        if x.shape != y.shape:
            raise MismatchError(f"{name} is {tuple(x.shape)} in one output and {tuple(y.shape)} in the other")
        if x.numel() and not torch.equal(x, y):
            worst = max(worst, float((x.double() - y.double()).abs().nan_to_num(nan=torch.inf).max()))
    return worst


def _tensors(value: Any, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _tensors(item, f"{name}.{key}")
    elif isinstance(value, (tuple, list)):
        for index, item in enumerate(value):
            yield from _tensors(item, f"{name}.{index}")
