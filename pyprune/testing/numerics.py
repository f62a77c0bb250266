"""How close is close enough: three classes of tolerance, so that no test holds a number of its own.

exact    the same bits, dtype and shape
budget   the error against a float64 truth is at most k times that of the same computation in torch and the same dtype
ratio    the relative RMS error against a float64 truth is within the rounding of a dtype

and `poisoned`, which fills memory that a kernel forgot to write with NaN.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

# A sum of n rounded terms errs by about sqrt(n) roundings, and the longest sums in the tests have some thousand terms.
RATIO_ROUNDINGS = 32

# A kernel that keeps one running sum per output, where torch adds pairwise, errs more by sqrt(additions /
# log2(additions)): 4.3 for the 128 additions of 512 tokens taken four at a time.
RUNNING_SUM = 4.0

# Tensor cores cut off what does not fit where adders round, so that errors do not cancel: three tf32 products of 2,048
# terms err 50 times as much as torch's sum in fp32. A single tf32 product errs some 700 times as much.
TENSOR_CORE_SUM = 128.0


def exact(actual: Tensor, expected: Tensor) -> None:
    """Assert equal bits (NaN equals NaN), dtype and shape."""
    assert actual.dtype == expected.dtype, f"dtype {actual.dtype}, expected {expected.dtype}"
    assert actual.shape == expected.shape, f"shape {list(actual.shape)}, expected {list(expected.shape)}"
    same = (actual == expected) | (actual.isnan() & expected.isnan())
    assert same.all(), f"{int((~same).sum())} of {same.numel()} elements differ"


def budget(actual: Tensor, truth: Tensor, same_dtype: Tensor, k: float = 2.0) -> None:
    """Assert max |actual - truth| <= k * max |same_dtype - truth|.

    truth: float64 result; same_dtype: torch's result in the dtype under test. One rounding of the largest element is
    always allowed: on small cases torch is sometimes exact by luck.
    """
    _comparable(actual, truth)
    error, yardstick = (_max_abs(t.double() - truth) for t in (actual, same_dtype))
    rounding = torch.finfo(actual.dtype).eps * _max_abs(truth)
    allowed = k * max(yardstick, rounding)
    assert error <= allowed, f"error {error:.3e} exceeds {allowed:.3e} = {k} x max(torch {yardstick:.3e}, rounding)"


def ratio(actual: Tensor, truth: Tensor, dtype: torch.dtype | None = None) -> None:
    """Assert that the RMS of the error is within RATIO_ROUNDINGS roundings of `dtype` (default: actual's) of truth's
    RMS.
    """
    _comparable(actual, truth)
    found = relative_rms(actual, truth)
    allowed = RATIO_ROUNDINGS * torch.finfo(dtype or actual.dtype).eps
    assert found <= allowed, f"relative RMS error {found:.3e} exceeds {allowed:.3e}"


def relative_rms(actual: Tensor, truth: Tensor) -> float:
    """RMS of actual - truth over RMS of truth; 0 when both are zero."""
    error = (actual.double() - truth.double()).norm()
    return 0.0 if error == 0 else float(error / truth.double().norm())


@contextmanager
def poisoned() -> Iterator[None]:
    """Inside, memory from torch.empty and its relatives is NaN: an element that a kernel never wrote shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    fill, torch.utils.deterministic.fill_uninitialized_memory = (
        torch.utils.deterministic.fill_uninitialized_memory,
        True,
    )
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = fill


def _comparable(actual: Tensor, truth: Tensor) -> None:
    assert truth.dtype == torch.float64, f"the truth must be float64, got {truth.dtype}"
    assert actual.shape == truth.shape, f"shape {list(actual.shape)}, expected {list(truth.shape)}"
    assert actual.isfinite().all(), f"{int((~actual.isfinite()).sum())} elements are not finite"


def _max_abs(t: Tensor) -> float:
    return float(t.double().abs().max()) if t.numel() else 0.0
