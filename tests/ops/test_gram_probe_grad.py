"""gram_probe_grad: a hand table, autograd with the same signs in float64, and what its squares are on average."""

import pytest
import torch
import torch.nn.functional as F

import pyprune.ops as ops
from pyprune.core.errors import InputError
from pyprune.ops.gram_probe_grad import OP, bytes_moved, flops, reference, signs
from pyprune.testing import ladder, numerics
from pyprune.testing.cases import cases


def make(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_hand_table():
    """Two rows at right angles: the gradient of each is the other over its own norm, times sqrt(2) and a sign."""
    f = torch.tensor([[[2.0, 0.0], [0.0, 1.0]]])
    found = ops.gram_probe_grad(f, torch.tensor([7]))
    sign = float(signs(torch.tensor([7]), 2)[0, 0, 1])
    expected = 2**0.5 * sign * torch.tensor([[[0.0, 0.5], [1.0, 0.0]]])
    numerics.ratio(found, expected.double())


def test_autograd_through_the_gram_matrix():
    f = make(3, 37, 20).requires_grad_()
    keys = torch.tensor([5, -1, 1 << 61])
    rows = F.normalize(f, dim=-1)
    probe = 2**0.5 * (signs(keys, 37).double() * (rows @ rows.mT)).triu(1).sum()
    (expected,) = torch.autograd.grad(probe, f)
    numerics.ratio(ops.gram_probe_grad(f, keys), expected)


@pytest.mark.parametrize("candidate", [c for c in OP.candidates if c.backend == "torch"], ids=lambda c: c.backend)
def test_every_case(candidate):
    for name, args in cases(OP, "cpu", tiny=True):
        try:
            ladder.inside_its_buffers(OP, candidate, args)
        except Exception as error:
            raise AssertionError(f"{name}: {error}") from error


def test_signs_are_symmetric_balanced_and_of_no_other_place():
    found = signs(torch.arange(40), 100).double()
    numerics.exact(found, found.mT)
    numerics.exact(signs(torch.arange(40), 33), signs(torch.arange(40), 100)[:, :33, :33])
    at = torch.ones(100, 100).tril(-1).bool()
    draws = found[:, at]  # 40 keys, 4,950 pairs
    count = draws.numel()
    assert abs(draws.sum()) < 5 * count**0.5  # five standard deviations
    between = (draws @ draws.T).triu(1)
    assert between.abs().max() < 6 * draws.shape[1] ** 0.5
    across = (draws[:, 1:] * draws[:, :-1]).sum()
    assert abs(across) < 5 * count**0.5


def test_mean_of_squares_is_the_distance_of_gram_matrices():
    f, move = make(1, 12, 8), make(1, 12, 8, seed=1)
    _, moved = torch.func.jvp(lambda x: F.normalize(x, dim=-1) @ F.normalize(x, dim=-1).mT, (f,), (move,))
    probes = 4000
    keys = torch.arange(probes) * 0x9E3779B97F4A7C1
    along = (ops.gram_probe_grad(f.expand(probes, -1, -1), keys) * move).sum((1, 2)).square()
    truth = float(moved.square().sum())
    error = float(along.std()) / probes**0.5
    assert abs(float(along.mean()) - truth) < 4 * error
    assert error < 0.05 * truth


def test_padding_is_not_read_and_does_not_count():
    f, keys = make(2, 9, 16), torch.tensor([1, 2])
    padded = torch.cat([f, torch.full((2, 30, 16), torch.nan, dtype=torch.float64)], 1)
    real = torch.arange(39) < torch.tensor([[9], [9]])
    found = ops.gram_probe_grad(padded, keys, real)
    numerics.ratio(found[:, :9], reference(f, keys))
    assert not found[:, 9:].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f, k: (f[0], k), "f must be"),
        (lambda f, k: (f.int(), k), "f must be float32"),
        (lambda f, k: (f, k[1:]), "keys must be int64"),
        (lambda f, k: (f, k.int()), "keys must be int64"),
        (lambda f, k: (f, k, torch.ones(2, 4, dtype=torch.bool)), "token_mask must be bool"),
    ],
)
def test_bad_arguments(change, message):
    with pytest.raises(InputError, match=message):
        ops.gram_probe_grad(*change(make(2, 5, 4), torch.tensor([1, 2])))


def test_bytes_and_flops():
    f = torch.zeros(3, 10, 8)
    assert bytes_moved(f) == 2 * 4 * 240
    assert flops(f) == 2 * 3 * 100 * 8 + 8 * 240
