"""The floating-point type of a scoring pass, for every recipe."""

from __future__ import annotations

import copy

import torch
from torch import nn

from pyprune.core.errors import InputError

_DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def checked_dtype(score_dtype: str | torch.dtype | None) -> torch.dtype | None:
    """`torch.bfloat16` or `"bfloat16"` as a dtype; InputError for what no scoring pass can run in."""
    if score_dtype is None:
        return None
    name = str(score_dtype).removeprefix("torch.")
    if name not in _DTYPES:
        raise InputError(f"score_dtype={name!r}: choose {', '.join(_DTYPES)}")
    return _DTYPES[name]


def in_dtype(model: nn.Module, score_dtype: torch.dtype | None) -> nn.Module:
    """`model` itself, or a copy in another floating-point type."""
    return model if score_dtype in (None, model.dtype) else copy.deepcopy(model).to(score_dtype)
