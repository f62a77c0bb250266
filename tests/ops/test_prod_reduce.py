"""prod_reduce: literal table, then the float64 reference, then every backend that runs here."""

import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pyprune.ops as ops
from pyprune.core.errors import BackendError, InputError
from pyprune.ops.prod_reduce import KERNEL_DTYPES, OP, bytes_moved, flops, reference
from pyprune.testing import numerics

AVAILABLE = [row.backend for row in ops.table() if row.op == "prod_reduce" and row.available]
CPU_BACKENDS = [b for b in AVAILABLE if b in ("cpp", "torch")]
KERNELS = [b for b in CPU_BACKENDS if b != "torch"]
DTYPES = pytest.mark.parametrize("dtype", KERNEL_DTYPES, ids=lambda d: str(d).removeprefix("torch."))
BACKENDS = pytest.mark.parametrize("backend", CPU_BACKENDS)


def pair(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(*shape, generator=generator).to(dtype) for _ in range(2))


def compare(backend, x, y, cu_seqlens=None, group=1, mod_group=0):
    args = cu_seqlens, group, mod_group
    with ops.backend(backend), numerics.poisoned():
        actual = ops.prod_reduce(x, y, *args)
    assert actual.dtype == torch.float32
    numerics.budget(actual, reference(x.double(), y.double(), *args), reference(x, y, *args), numerics.RUNNING_SUM)
    return actual


@BACKENDS
@DTYPES
@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        ({}, [[15.0, -4.0, 2.0, 12.0], [0.0, 0.0, 8.0, 1.0]]),
        ({"group": 2}, [[11.0, 14.0], [0.0, 9.0]]),
        ({"group": 4}, [[25.0], [9.0]]),
        ({"mod_group": 2}, [[17.0, 8.0], [8.0, 1.0]]),
    ],
)
def test_literal(backend, dtype, kwargs, expected):
    x = torch.tensor([[[1.0, 2, 0, 3], [4, 0, 1, 0]], [[0.0, 5, 2, 1], [0, 0, 2, 0]]], dtype=dtype)
    y = torch.tensor([[[3.0, -2, 7, 4], [3, 9, 2, 5]], [[8.0, 0, 1, 1], [7, 6, 3, 2]]], dtype=dtype)
    with ops.backend(backend):
        numerics.exact(ops.prod_reduce(x, y, **kwargs), torch.tensor(expected))


@BACKENDS
def test_literal_ragged(backend):
    x = torch.tensor([[9.0, 9], [1, 2], [3, 4], [5, 6], [9, 9]])
    offsets = torch.tensor([1, 3, 3, 4])
    with ops.backend(backend):
        numerics.exact(ops.prod_reduce(x, x, offsets), torch.tensor([[10.0, 20], [0, 0], [25, 36]]))


@BACKENDS
@DTYPES
def test_literal_probes(backend, dtype):
    x = torch.tensor([[[1.0, 2], [3, 4]]], dtype=dtype)
    y = torch.tensor([[[[1.0, 1], [1, 1]]], [[[0, 5], [2, 0]]], [[[-1, 0], [0, -1]]]], dtype=dtype)
    with ops.backend(backend):
        numerics.exact(ops.prod_reduce(x, y), torch.tensor([[[4.0, 6]], [[6, 10]], [[-1, -4]]]))
        numerics.exact(ops.prod_reduce(x, y, group=2), torch.tensor([[[10.0]], [[16]], [[-5]]]))
        ragged = ops.prod_reduce(x[0], y[:, 0], torch.tensor([0, 1, 1, 2]))
    expected = [[[1.0, 2], [0, 0], [3, 4]], [[0, 10], [0, 0], [6, 0]], [[-1, 0], [0, 0], [0, -4]]]
    numerics.exact(ragged, torch.tensor(expected))


@pytest.mark.parametrize("backend", KERNELS)
@DTYPES
@pytest.mark.parametrize(("probes", "group", "mod_group"), [(1, 1, 0), (7, 1, 0), (37, 1, 0), (37, 3, 0), (9, 1, 50)])
def test_a_probe_has_the_bits_of_no_probes(backend, dtype, probes, group, mod_group):
    x, y = pair(2, 519, 300, dtype=dtype)[0], pair(probes, 2, 519, 300, dtype=dtype)[1]
    with ops.backend(backend):
        together = ops.prod_reduce(x, y, None, group, mod_group)
        numerics.exact(together, torch.stack([ops.prod_reduce(x, probe, None, group, mod_group) for probe in y]))


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("group", [400, 401])
def test_a_group_has_the_same_bits_wherever_its_columns_are_cut(backend, group):
    """The kernel takes all columns at a time for one probe. For nine it takes 3,600, which are whole groups of 400, or
    3,632, which are no whole groups of 401.
    """
    x, y = torch.ones(1, 1, 10 * group), torch.zeros(9, 1, 1, 10 * group)
    last = y[..., 9 * group :]
    last[..., 0], last[..., 1], last[..., 32] = 1e30, 1.0, -1e30
    with ops.backend(backend):
        together = ops.prod_reduce(x, y, None, group)
        numerics.exact(together, torch.stack([ops.prod_reduce(x, probe, None, group) for probe in y]))


@BACKENDS
@DTYPES
@pytest.mark.parametrize(
    ("shape", "group", "mod_group"),
    [
        ((2, 37, 100), 1, 0),
        ((1, 1, 3), 1, 0),
        ((3, 197, 192), 64, 0),
        ((2, 13, 3 * 17), 17, 0),
        ((2, 5, 4100), 1, 0),
        ((1, 9, 2 * 4100), 4100, 0),
        ((1, 9, 4200), 42, 0),
        ((2, 37, 5000), 0, 50),
        ((1, 1300, 70), 7, 0),
        ((2, 513, 96), 0, 32),
        ((4, 0, 12), 3, 0),
    ],
)
def test_against_float64(backend, dtype, shape, group, mod_group):
    compare(backend, *pair(*shape, dtype=dtype), None, group or 1, mod_group)


@BACKENDS
@DTYPES
@pytest.mark.parametrize("offset_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("group", [1, 8])
def test_ragged_ignores_pads(backend, dtype, offset_dtype, group):
    x, y = pair(700, 40, dtype=dtype)
    offsets = torch.tensor([3, 4, 4, 41, 41, 650, 695], dtype=offset_dtype)
    for t in (x, y):
        t[:3] = torch.nan
        t[695:] = torch.nan
    compare(backend, x, y, offsets, group)


@pytest.mark.parametrize("backend", KERNELS)
@DTYPES
def test_bits_do_not_depend_on_the_batch(backend, dtype):
    x, y = pair(5, 1100, 300, dtype=dtype)
    flat = x.flatten(0, 1), y.flatten(0, 1)
    with ops.backend(backend):
        together = ops.prod_reduce(x, y, group=3)
        ragged = ops.prod_reduce(*flat, torch.arange(6) * 1100, group=3)
        alone = torch.cat([ops.prod_reduce(x[b : b + 1], y[b : b + 1], group=3) for b in range(5)])
    numerics.exact(together, alone)
    numerics.exact(together, ragged)


@pytest.mark.parametrize("backend", KERNELS)
def test_bits_do_not_depend_on_threads(backend):
    x, y = pair(1, 200, 4500)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            with ops.backend(backend):
                results.append(ops.prod_reduce(x, y))
    finally:
        torch.set_num_threads(before)
    numerics.exact(results[1], results[0])
    numerics.exact(results[2], results[0])


@BACKENDS
@DTYPES
def test_strides(backend, dtype):
    x, y = pair(3, 11, 64, dtype=dtype)
    wide = torch.full((11, 3, 96), torch.nan, dtype=dtype)
    wide[:, :, 16:80] = x.transpose(0, 1)
    strided = wide[:, :, 16:80].transpose(0, 1)
    with ops.backend(backend):
        expected = ops.prod_reduce(x, y)
        numerics.exact(ops.prod_reduce(strided, y), expected)
        numerics.exact(ops.prod_reduce(strided, y.mT.contiguous().mT), expected)
        numerics.exact(ops.prod_reduce(x[:, :1].expand(3, 11, 64), y), ops.prod_reduce(x[:, :1].repeat(1, 11, 1), y))


@pytest.mark.parametrize("backend", KERNELS)
def test_infinities_and_subnormals_of_float16(backend):
    x = torch.tensor([[[torch.inf, torch.nan, 2.0**-24, -65504.0, -0.0] * 5]], dtype=torch.float16)
    y = torch.ones_like(x)
    with ops.backend(backend):
        numerics.exact(ops.prod_reduce(x, y), x[0].float())


# The same draws in every run: of a single sum torch is now and then exact by luck, which no kernel can be held to.
@BACKENDS
@settings(deadline=None, max_examples=25, derandomize=True)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=5),
    groups=st.integers(1, 6),
    group=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_any_shape(backend, lengths, groups, group, seed):
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    x, y = pair(int(offsets[-1]), groups * group, seed=seed)
    compare(backend, x, y, offsets, group)
    by_modulus = compare(backend, x, y, offsets, 1, group)
    assert by_modulus.shape == (len(lengths), group)


@BACKENDS
@settings(deadline=None, max_examples=10)
@given(a=st.sampled_from([-2.0, 0.5, 4.0]), seed=st.integers(0, 99))
def test_linear_in_y(backend, a, seed):
    x, y = pair(2, 30, 20, seed=seed)
    with ops.backend(backend):
        numerics.exact(ops.prod_reduce(x, a * y), a * ops.prod_reduce(x, y))
        merged = ops.prod_reduce(x, y).sum(0)
    # All columns together: the sum of one alone may cancel to next to nothing, which no relative error survives.
    numerics.ratio(merged, (x.double() * y.double()).sum((0, 1)), torch.float32)


@pytest.mark.parametrize(("group", "mod_group"), [(1, 0), (3, 0), (1, 3)])
@pytest.mark.parametrize("ragged", [False, True])
def test_gradients(group, mod_group, ragged):
    x, y = (t.double().requires_grad_() for t in (pair(7, 6) if ragged else pair(2, 3, 6)))
    offsets = torch.tensor([1, 3, 3, 6]) if ragged else None
    assert torch.autograd.gradcheck(lambda a, b: ops.prod_reduce(a, b, offsets, group, mod_group), (x, y))


@pytest.mark.parametrize(("group", "mod_group"), [(1, 0), (3, 0), (1, 3)])
@pytest.mark.parametrize("ragged", [False, True])
def test_gradients_of_probes(group, mod_group, ragged):
    x, y = pair(*((7, 6) if ragged else (2, 3, 6)))[0], pair(*((4, 7, 6) if ragged else (4, 2, 3, 6)))[1]
    offsets = torch.tensor([1, 3, 3, 6]) if ragged else None
    x, y = (t.double().requires_grad_() for t in (x, y))
    assert torch.autograd.gradcheck(lambda a, b: ops.prod_reduce(a, b, offsets, group, mod_group), (x, y))


def test_gradient_of_pads_is_zero():
    x, y = pair(4, 2)
    y[3] = torch.nan
    x.requires_grad_()
    ops.prod_reduce(x, y, torch.tensor([0, 2, 3])).sum().backward()
    numerics.exact(x.grad[3], torch.zeros(2))
    numerics.exact(x.grad[:3], y[:3])


@BACKENDS
def test_no_sample_has_no_gradient(backend):
    x, y = (t.requires_grad_() for t in pair(4, 6))
    with ops.backend(backend):
        out = ops.prod_reduce(x, y, torch.tensor([2]))
    assert out.shape == (0, 6)
    for gradient in torch.autograd.grad(out.sum(), (x, y)):
        numerics.exact(gradient, torch.zeros(4, 6))


@BACKENDS
def test_compiles_as_one_graph(backend):
    x, y = pair(2, 5, 12)
    compiled = torch.compile(lambda a, b: ops.prod_reduce(a * 2, b, group=4) + 1, fullgraph=True)
    with ops.backend(backend):
        numerics.exact(compiled(x, y), ops.prod_reduce(x * 2, y, group=4) + 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x, y: (x, y[:1]), "must both be"),
        (lambda x, y: (x[0], y[0]), "must both be"),
        (lambda x, y: (x, y[None, :, :2]), "more dimension in front for probes"),
        (lambda x, y: (x, y[None, None]), "more dimension in front for probes"),
        (lambda x, y: (x[None], y), "must both be"),
        (lambda x, y: (x, y.half()), "share a floating dtype"),
        (lambda x, y: (x.int(), y.int()), "share a floating dtype"),
        (lambda x, y: (x, y, None, 5), "no multiple of group 5"),
        (lambda x, y: (x, y, None, 0), "group >= 1"),
        (lambda x, y: (x, y, None, 2, 2), "not both"),
        (lambda x, y: (x[0], y[0], torch.tensor([0, 9])), "stay within"),
        (lambda x, y: (x[0], y[0], torch.tensor([-1, 2])), "stay within"),
        (lambda x, y: (x[0], y[0], torch.tensor([2, 1])), "must not decrease"),
        (lambda x, y: (x[0], y[0], torch.tensor([0.0, 1.0])), "int32 or int64"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(InputError, match=message):
        ops.prod_reduce(*make(*pair(2, 3, 6)))


def test_float64_falls_back_to_torch_and_says_so_once(caplog):
    x, y = (t.double() for t in pair(2, 3, 4))
    OP._told.clear()
    with caplog.at_level(logging.INFO, logger="pyprune.ops"):
        first = ops.prod_reduce(x, y)
        ops.prod_reduce(x, y)
    numerics.exact(first, reference(x, y, None, 1, 0))
    assert len(caplog.records) == (1 if "cpp" in AVAILABLE else 2 - len(KERNELS) - 1)
    assert "using torch" in caplog.text


def test_bytes_and_flops():
    x, y = pair(2, 3, 8, dtype=torch.bfloat16)
    assert bytes_moved(x, y, None, 4) == 2 * 2 * 3 * 8 * 2 + 2 * 2 * 4
    assert flops(x, y) == 2 * 2 * 3 * 8
    y = y.expand(5, 2, 3, 8)
    assert bytes_moved(x, y, None, 4) == 6 * 2 * 3 * 8 * 2 + 5 * 2 * 2 * 4
    assert flops(x, y) == 5 * 2 * 2 * 3 * 8


def test_explicit_backend_never_falls_back():
    x, y = (t.double() for t in pair(1, 2, 3))
    for backend in [b for b in ("cpp", "cuda", "triton") if b not in AVAILABLE or b == "cpp"]:
        with ops.backend(backend), pytest.raises(BackendError, match=f"backend '{backend}' was asked for but"):
            ops.prod_reduce(x, y)
