"""hadamard_gram: a hand table, the explicit design matrix in float64, then every backend that runs here."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pyprune.ops as ops
from pyprune.core.errors import InputError
from pyprune.ops.hadamard_gram import OP, bytes_moved, flops, reference
from pyprune.testing import ladder, numerics

AVAILABLE = [row.backend for row in ops.table() if row.op == "hadamard_gram" and row.available]
BACKENDS = pytest.mark.parametrize("backend", [b for b in AVAILABLE if b in ("cpp", "torch")])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)


def make(tokens, units, group, d, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = (tokens, units * group), (units * group, d), (tokens, d)
    return tuple(torch.randn(*s, generator=generator).to(dtype) for s in shapes)


def explicit(h, w, target, group):
    """The design matrix A itself, `[tokens * d, units]`, in float64."""
    columns = torch.einsum(
        "tjc,jcd->tdj", *(h.double().unflatten(1, (-1, group)), w.double().unflatten(0, (-1, group)))
    )
    a = columns.flatten(0, 1)
    return a.T @ a, a.T @ target.double().flatten()


def compare(backend, h, w, target, group):
    with ops.backend(backend), numerics.poisoned():
        ata, atb = ops.hadamard_gram(h, w, target, group)
    true_ata, true_atb = explicit(h, w, target, group)
    torch_ata, torch_atb = reference(h, w, target, group)
    numerics.budget(ata, true_ata, torch_ata, numerics.RUNNING_SUM)
    numerics.budget(atb, true_atb, torch_atb, numerics.RUNNING_SUM)
    numerics.exact(ata, ata.T)
    assert ata.dtype == atb.dtype == torch.float32


@BACKENDS
@DTYPES
def test_literal(backend, dtype):
    h = torch.tensor([[1, 2, 0, 1], [0, 1, 3, -1]], dtype=dtype)
    w = torch.tensor([[1, 0], [2, 1], [0, 1], [1, -1]], dtype=dtype)
    target = torch.tensor([[1, 2], [3, 4]], dtype=dtype)
    with ops.backend(backend):
        ata, atb = ops.hadamard_gram(h, w, target, 2)
        # Unit 0 adds (1,0) + 2(2,1) = (5,2) and 1(2,1) = (2,1); unit 1 adds (1,-1) and 3(0,1) - (1,-1) = (-1,4).
        numerics.exact(ata, torch.tensor([[34.0, 5.0], [5.0, 19.0]]))
        numerics.exact(atb, torch.tensor([19.0, 12.0]))
        per_channel, _ = ops.hadamard_gram(h, w)
        numerics.exact(per_channel[1], torch.tensor([4.0, 25.0, 3.0, 1.0]))


@BACKENDS
@DTYPES
@pytest.mark.parametrize(
    ("tokens", "units", "group", "d"),
    [
        (37, 100, 1, 20),
        (1, 3, 1, 1),
        (197, 12, 64, 48),
        (64, 1030, 1, 8),
        (5, 3, 600, 7),
        (130, 40, 33, 16),
        (9, 20, 30, 300),
    ],
)
def test_against_the_design_matrix(backend, dtype, tokens, units, group, d):
    compare(backend, *make(tokens, units, group, d, dtype), group)


@BACKENDS
def test_no_tokens_and_no_target(backend):
    h, w, target = make(0, 6, 2, 4)
    with ops.backend(backend), numerics.poisoned():
        for out in ops.hadamard_gram(h, w, target, 2):
            numerics.exact(out, torch.zeros_like(out))
        _, atb = ops.hadamard_gram(*make(5, 6, 2, 4)[:2], None, 2)
    numerics.exact(atb, torch.zeros(6))


@BACKENDS
def test_strides(backend):
    h, w, target = make(30, 20, 3, 16)
    with ops.backend(backend):
        expected = ops.hadamard_gram(h, w, target, 3)
        # A Linear's weight is [d, channels]: w is usually its transpose, not a copy.
        turned = ops.hadamard_gram(h.T.contiguous().T, w.T.contiguous().T, target.repeat(1, 2)[:, :16], 3)
    for a, b in zip(turned, expected, strict=True):
        numerics.ratio(a, b.double())


@BACKENDS
@settings(deadline=None, max_examples=20)
@given(tokens=st.integers(1, 30), units=st.integers(1, 20), group=st.integers(1, 5), d=st.integers(1, 9))
def test_any_shape(backend, tokens, units, group, d):
    compare(backend, *make(tokens, units, group, d), group)


@BACKENDS
def test_batches_add_up_and_calls_repeat(backend):
    h, w, target = make(90, 30, 2, 12)
    with ops.backend(backend):
        whole = ops.hadamard_gram(h, w, target, 2)
        again = ops.hadamard_gram(h, w, target, 2)
        parts = [ops.hadamard_gram(h[s], w, target[s], 2) for s in (slice(0, 31), slice(31, 90))]
    for k in range(2):
        numerics.exact(whole[k], again[k])
        numerics.ratio(parts[0][k] + parts[1][k], whole[k].double())


@pytest.mark.parametrize(("tokens", "units", "group", "d"), [(37, 24, 1, 20), (100, 700, 1, 300), (50, 5, 100, 600)])
def test_same_bits_with_any_threads(tokens, units, group, d):
    """MKL cuts even small products by the number of threads on some processors: the first shape with 3 on an EPYC."""
    args = make(tokens, units, group, d)
    for candidate in OP.candidates:
        if candidate.backend == "cpp" and "cpp" in AVAILABLE:
            ladder.same_with_any_threads(OP, candidate, (*args, group))


def test_solves_the_tuning_problem():
    """A target that is a known mixture of the units is recovered from the normal equations."""
    h, w, _ = (t.double() for t in make(50, 6, 4, 16))
    scale = torch.tensor([1.0, -2, 0.5, 3, 0, 1]).double()
    ata, atb = ops.hadamard_gram(h, w, (h * scale.repeat_interleave(4)) @ w, 4)
    numerics.ratio(torch.linalg.solve(ata, atb), scale, torch.float32)


@BACKENDS
def test_compiles_as_one_graph(backend):
    args = make(5, 4, 2, 6)
    compiled = torch.compile(lambda h, w, t: ops.hadamard_gram(h * 2, w, t, 2)[0] + 1, fullgraph=True)
    with ops.backend(backend):
        numerics.exact(compiled(*args), ops.hadamard_gram(args[0] * 2, *args[1:], 2)[0] + 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h, w, t: (h[:, 1:], w, t), "h must be"),
        (lambda h, w, t: (h, w, t[1:]), "target must be"),
        (lambda h, w, t: (h, w.half(), t), "one floating dtype"),
        (lambda h, w, t: (h.int(), w.int(), t.int()), "one floating dtype"),
        (lambda h, w, t: (h, w, t, 5), "no multiple of group 5"),
        (lambda h, w, t: (h, w, t, 0), "no multiple of group 0"),
    ],
)
def test_bad_arguments(change, message):
    with pytest.raises(InputError, match=message):
        ops.hadamard_gram(*change(*make(5, 4, 2, 6)))


def test_bytes_and_flops():
    h, w, target = make(10, 3, 2, 5)
    assert bytes_moved(h, w, target, 2) == 4 * (60 + 30 + 50) + 4 * (9 + 3)
    assert flops(h, w, None, 2) == 6 * 7 * 15
    assert flops(h, w, target, 2) == 6 * 7 * 15 + 2 * 10 * 6 * 5
