"""wgrad_group_scores: a hand table, then explicit gradients of every sample, and what the modes have in common."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pyprune.ops as ops
from pyprune.core.errors import InputError
from pyprune.ops.wgrad_group_scores import KERNEL_DTYPES, MODES, bytes_moved, flops
from pyprune.testing import numerics

AVAILABLE = [row.backend for row in ops.table() if row.op == "wgrad_group_scores" and row.available]
BACKENDS = pytest.mark.parametrize("backend", [b for b in AVAILABLE if b in ("cpp", "torch")])
DTYPES = pytest.mark.parametrize("dtype", KERNEL_DTYPES, ids=str)


def make(batch, tokens, p, d, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = (batch, tokens, p), (batch, tokens, d), (p, d)
    return tuple(torch.randn(*shape, generator=generator).to(dtype) for shape in shapes)


def explicit(gradients, w, mode):
    """From the gradients of all samples, `[B, p, d]` in float64."""
    w, total, squares = w.double(), gradients.sum(0), (gradients**2).sum(0)
    score = {"abs": (w * total).abs(), "sq": w**2 * squares, "mix": (w * total - w**2 * squares / 2).abs()}[mode]
    return score.sum(1), score.sum(0)


@BACKENDS
@DTYPES
@pytest.mark.parametrize(
    ("mode", "rows", "columns"),
    [
        # g_0 = [[2, -1], [1, 1]], g_1 = [[-2, 2], [0, -4]]; g = [[0, 1], [1, -3]], squares [[8, 5], [1, 17]].
        ("abs", [2.0, 5.0], [2.0, 5.0]),
        ("sq", [28.0, 21.0], [12.0, 37.0]),
        # w g = [[0, 2], [2, 3]]; half of the second order: [[4, 10], [2, 8.5]].
        ("mix", [12.0, 5.5], [4.0, 13.5]),
    ],
)
def test_literal(backend, dtype, mode, rows, columns):
    dy = torch.tensor([[[1, 1], [-1, 0]], [[0, 2], [1, -1]]], dtype=dtype)
    x = torch.tensor([[[1, 1], [-1, 2]], [[-1, -1], [-2, 2]]], dtype=dtype)
    w = torch.tensor([[1, 2], [2, -1]], dtype=dtype)
    with ops.backend(backend):
        found = ops.wgrad_group_scores(dy, x, w, mode=mode)
        numerics.exact(found[0], torch.tensor(rows))
        numerics.exact(found[1], torch.tensor(columns))


@BACKENDS
@pytest.mark.parametrize("mode", MODES)
def test_against_the_gradients_of_a_layer(backend, mode):
    """`weight.grad` of one sample at a time: no formula of ours."""
    layer = torch.nn.Linear(29, 45, bias=False)
    _, x, _ = make(4, 300, 1, 29)
    target = make(4, 300, 45, 1, seed=1)[0]
    gradients, dy = [], []
    for sample, goal in zip(x, target, strict=True):
        y = layer(sample)
        y.retain_grad()
        layer.zero_grad()
        (y - goal).square().sum().backward()
        gradients.append(layer.weight.grad.double())
        dy.append(y.grad)
    with ops.backend(backend):
        found = ops.wgrad_group_scores(torch.stack(dy), x, layer.weight.detach(), mode=mode)
    for f, truth in zip(found, explicit(torch.stack(gradients), layer.weight.detach(), mode), strict=True):
        numerics.ratio(f, truth)


@BACKENDS
@pytest.mark.parametrize("mode", MODES)
@settings(deadline=None, max_examples=15)
@given(
    lengths=st.lists(st.sampled_from([0, 1, 5, 40, 257, 300]), min_size=1, max_size=4),
    p=st.integers(1, 40),
    d=st.integers(1, 70),
    seed=st.integers(0, 99),
)
def test_any_shape(backend, mode, lengths, p, d, seed):
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    dy, x, w = make(1, int(offsets[-1]), p, d, seed=seed)
    dy, x = dy[0], x[0]
    gradients = [dy[s:e].double().T @ x[s:e].double() for s, e in pairwise(offsets)]
    with ops.backend(backend), numerics.poisoned():
        found = ops.wgrad_group_scores(dy, x, w, offsets, mode)
    for f, truth in zip(found, explicit(torch.stack(gradients), w, mode), strict=True):
        numerics.ratio(f, truth)


@BACKENDS
@pytest.mark.parametrize("mode", MODES)
def test_rows_and_columns_have_one_sum(backend, mode):
    with ops.backend(backend):
        rows, columns = ops.wgrad_group_scores(*make(3, 50, 37, 90), mode=mode)
    numerics.ratio(rows.sum(), columns.double().sum())


@BACKENDS
def test_squares_of_one_sample_are_the_squares_of_w_g(backend):
    dy, x, w = make(1, 50, 13, 40)
    # Where no sum has two terms that are not zero, "sq" is the square of "abs": a layer with one input.
    with ops.backend(backend):
        first, _ = ops.wgrad_group_scores(dy, x[..., :1], w[:, :1], mode="abs")
        second, _ = ops.wgrad_group_scores(dy, x[..., :1], w[:, :1], mode="sq")
        rows, _ = ops.wgrad_group_scores(dy, x, w, mode="sq")
    numerics.ratio(second, first.double() ** 2)
    numerics.ratio(rows, ((w.double() * (dy[0].double().T @ x[0].double())) ** 2).sum(1))


@BACKENDS
def test_the_first_order_does_not_depend_on_samples(backend):
    dy, x, w = make(4, 70, 13, 40)
    with ops.backend(backend):
        batch = ops.wgrad_group_scores(dy, x, w)
        one = ops.wgrad_group_scores(dy.flatten(0, 1)[None], x.flatten(0, 1)[None], w)
    for a, b in zip(batch, one, strict=True):
        numerics.ratio(a, b.double())


@pytest.mark.skipif("cpp" not in AVAILABLE, reason="no C++ extension")
def test_infinite_gradients_stay_in_their_rows():
    """The kernel fills tiles with zeros, and an infinity times zero is NaN."""
    dy, x, w = make(2, 5, 20, 33)
    x = x.abs() + 1
    dy[1, 2, 3] = torch.inf
    with ops.backend("cpp"):
        rows, columns = ops.wgrad_group_scores(dy, x, w, mode="sq")
    assert rows.isinf().nonzero().flatten().tolist() == [3]
    assert not rows.isnan().any()
    assert columns.isinf().all()


@pytest.mark.skipif("cpp" not in AVAILABLE, reason="no C++ extension")
def test_narrow_types_are_widened_and_not_rounded():
    """The same bits as the fp32 kernel on widened numbers."""
    for dtype in KERNEL_DTYPES[1:]:
        args = make(2, 37, 30, 40, dtype)
        with ops.backend("cpp"):
            narrow = ops.wgrad_group_scores(*args, mode="mix")
            wide = ops.wgrad_group_scores(*(t.float() for t in args), mode="mix")
        for a, b in zip(narrow, wide, strict=True):
            numerics.exact(a, b)


@BACKENDS
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("spoilt", [0, 1])
def test_what_is_infinite_spoils_its_own_sums_alone(backend, mode, spoilt):
    """The panels of a kernel are filled with zeros, and 0 * Inf is NaN."""
    given = [t.abs() for t in make(2, 3, 5, 6)]
    given[spoilt][0, 1, 4] = torch.inf
    with ops.backend(backend):
        found = ops.wgrad_group_scores(*given, mode=mode)
    expected = ops.OPS["wgrad_group_scores"].candidates[-1].run(*given, None, mode)
    for f, e in zip(found, expected, strict=True):
        numerics.exact(f.isnan(), e.isnan())
        numerics.exact(f.isinf(), e.isinf())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda dy, x, w: (dy[:1], x, w), r"must be \[B, T, p\] and \[B, T, d\]"),
        (lambda dy, x, w: (dy[0], x[0], w), r"must be \[B, T, p\]"),
        (lambda dy, x, w: (dy, x, w.T), r"w must be \[4, 6\]"),
        (lambda dy, x, w: (dy, x.half(), w), "share a floating dtype"),
        (lambda dy, x, w: (dy.int(), x.int(), w.int()), "share a floating dtype"),
        (lambda dy, x, w: (dy, x, w, None, "second"), "mode must be one of abs, sq, mix, got 'second'"),
        (lambda dy, x, w: (dy, x, w, torch.tensor([0, 3])), "with cu_seqlens"),
        (lambda dy, x, w: (dy[0], x[0], w, torch.tensor([0.0, 3.0])), "int32 or int64"),
        (lambda dy, x, w: (dy[0], x[0], w, torch.tensor([], dtype=torch.int64)), r"\[B \+ 1\]"),
        (lambda dy, x, w: (dy[0], x[0], w, torch.tensor([0, 4])), "stay within 3 tokens"),
        (lambda dy, x, w: (dy[0], x[0], w, torch.tensor([2, 1])), "must not decrease"),
    ],
)
def test_bad_arguments(change, message):
    with pytest.raises(InputError, match=message):
        ops.wgrad_group_scores(*change(*make(2, 3, 4, 6)))


def test_bytes_and_flops():
    dy, x, w = make(2, 3, 4, 6, torch.bfloat16)
    assert bytes_moved(dy, x, w) == 2 * (24 + 36 + 24) + 4 * 10
    assert flops(dy, x, w) == 2 * 6 * 4 * 6
