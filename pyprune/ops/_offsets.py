"""What every op on ragged batches asks of `cu_seqlens`."""

import torch
from torch import Tensor

from pyprune.core.errors import InputError


def check_offsets(op: str, cu_seqlens: Tensor | None) -> None:
    """What can be told without reading data."""
    if cu_seqlens is None:
        return
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 1 or cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise InputError(
            f"{op}: cu_seqlens must be int32 or int64 [B + 1], got {cu_seqlens.dtype} {list(cu_seqlens.shape)}"
        )


def check_offset_values(op: str, cu_seqlens: Tensor | None, tokens: int) -> None:
    """The values of offsets on the CPU: kernels trust them. On CUDA reading them would wait for the device."""
    if cu_seqlens is None or cu_seqlens.device.type != "cpu":
        return
    # Compared and not subtracted: a difference may wrap to a positive number.
    falls = bool((cu_seqlens[1:] < cu_seqlens[:-1]).any())
    if falls or int(cu_seqlens[0]) < 0 or int(cu_seqlens[-1]) > tokens:
        raise InputError(
            f"{op}: cu_seqlens must not decrease and must stay within {tokens} tokens, got {cu_seqlens.tolist()}"
        )
