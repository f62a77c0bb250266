"""The tolerance classes must be able to fail."""

import pytest
import torch

from pyprune.testing import numerics

TRUTH = torch.tensor([1.0, -2.0, 4.0], dtype=torch.float64)


def test_exact_sees_one_bit_dtype_and_shape():
    a = torch.tensor([1.0, torch.nan])
    numerics.exact(a, a.clone())
    for other in (torch.nextafter(a, a + 1), a.double(), a[None]):
        with pytest.raises(AssertionError):
            numerics.exact(a, other)


def test_budget_scales_with_torchs_error():
    same = TRUTH.float() + 1e-3
    numerics.budget(TRUTH.float() + 1.9e-3, TRUTH, same, 2)
    with pytest.raises(AssertionError, match="exceeds"):
        numerics.budget(TRUTH.float() + 2.1e-3, TRUTH, same, 2)
    with pytest.raises(AssertionError, match="exceeds"):
        numerics.budget(TRUTH.float() + 1e-5, TRUTH, TRUTH.float(), 2)


def test_ratio_scales_with_the_dtype():
    off = TRUTH.float() * (1 + 1e-3)
    numerics.ratio(off, TRUTH, torch.bfloat16)
    with pytest.raises(AssertionError, match="relative RMS"):
        numerics.ratio(off, TRUTH)


@pytest.mark.parametrize("check", [lambda a: numerics.budget(a, TRUTH, a), lambda a: numerics.ratio(a, TRUTH)])
def test_nan_never_passes(check):
    with pytest.raises(AssertionError, match="not finite"):
        check(torch.tensor([1.0, torch.nan, 4.0]))


def test_poisoned_fills_new_memory_and_restores():
    with numerics.poisoned():
        assert torch.empty(5).isnan().all()
        assert torch.ones(2).new_empty(3).isnan().all()
    assert not torch.are_deterministic_algorithms_enabled()
