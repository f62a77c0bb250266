"""gather_compact: tables worked out by hand, then the same bits as torch on every case, then what is refused."""

import pytest
import torch

import pyprune.ops as ops
from pyprune.core.errors import BackendError, InputError
from pyprune.ops.gather_compact import COPIED_DTYPES, OP, SCALED_DTYPES, bytes_moved, flops, reference
from pyprune.testing import numerics
from pyprune.testing.cases import cases
from pyprune.testing.ladder import call

CPU = [c for c in OP.candidates if "cpu" in c.devices and c.available() is None]
BACKENDS = pytest.mark.parametrize("backend", [c.backend for c in CPU])
KERNELS = pytest.mark.parametrize("candidate", [c for c in CPU if c.backend != "torch"], ids=lambda c: c.backend)

W = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]


def index(*kept):
    return torch.tensor(kept, dtype=torch.int64)


def one(tensor, rows=None, columns=None, row_scales=None, column_scales=None, multiple=1):
    (out,) = ops.gather_compact([tensor], [rows], [columns], [row_scales], [column_scales], multiple)
    return out


@BACKENDS
@pytest.mark.parametrize("dtype", COPIED_DTYPES, ids=lambda d: str(d).removeprefix("torch."))
def test_literal(backend, dtype):
    w, b = torch.tensor(W, dtype=dtype), torch.tensor([1, 2, 3], dtype=dtype)
    kept = index(0, 2)
    with ops.backend(backend):
        found = ops.gather_compact([w, b, w, w, w], [kept, kept, None, kept, None], [None, None, kept, kept, None])
        padded = ops.gather_compact([w, b, w], [kept, kept, None], [None, None, index(1)], multiple=3)
    expected = [[[1, 2, 3], [7, 8, 9]], [1, 3], [[1, 3], [4, 6], [7, 9]], [[1, 3], [7, 9]], W]
    assert [t.tolist() for t in found] == expected
    assert {t.dtype for t in found} == {dtype}
    assert [t.tolist() for t in padded] == [
        [[1, 2, 3], [7, 8, 9], [0, 0, 0]],
        [1, 3, 0],
        [[2, 0, 0], [5, 0, 0], [8, 0, 0]],
    ]


@BACKENDS
@pytest.mark.parametrize("dtype", SCALED_DTYPES, ids=lambda d: str(d).removeprefix("torch."))
def test_literal_scales(backend, dtype):
    w, b, kept = torch.tensor(W, dtype=dtype), torch.tensor([1, 2, 3], dtype=dtype), index(0, 2)
    down, across = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 4.0])
    with ops.backend(backend):
        assert one(w, kept, None, down).tolist() == [[2, 4, 6], [-7, -8, -9]]
        assert one(w, None, kept, None, across).tolist() == [[0.5, 12], [2, 24], [3.5, 36]]
        assert one(w, kept, kept, down, across, 4).tolist() == [[1, 24, 0, 0], [-3.5, -36, 0, 0], [0] * 4, [0] * 4]
        assert one(b, kept, None, down).tolist() == [2, -3]
        assert one(b, None, None, torch.tensor([1.0, 0.0, 3.0])).tolist() == [1, 0, 9]


@BACKENDS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_16_bit_number_is_scaled_to_the_bits_of_torch(backend, dtype):
    numbers = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)[None]
    for scale in (1.0, -0.3, 1e-5, 3e-8, 7e4, torch.inf, torch.nan):
        factor = torch.full((numbers.numel(),), scale)
        with ops.backend(backend):
            numerics.exact(one(numbers, column_scales=factor), (numbers.float() * factor).to(dtype))


@KERNELS
def test_the_bits_of_torch(candidate):
    """Not a float64's neighbourhood: copies are copies, and products are rounded once."""
    for _, args in cases(OP, "cpu", tiny=True):
        if candidate.supports(*args)[0]:
            for found, expected in zip(call(OP, candidate, args), reference(*args), strict=True):
                numerics.exact(found, expected)


@BACKENDS
def test_copies_keep_signed_zeros_and_the_payload_of_nan(backend):
    for whole, dtype in ((torch.int16, torch.bfloat16), (torch.int32, torch.float32), (torch.int64, torch.float64)):
        bits = torch.randint(-(2**15), 2**15, (5, 70)).to(whole)
        with ops.backend(backend):
            found = one(bits.view(dtype), index(1, 4), torch.arange(0, 70, 3))
        assert torch.equal(found.view(whole), bits[[1, 4]][:, ::3])


@BACKENDS
def test_every_result_has_storage_of_its_own(backend):
    w = torch.randn(4, 4)
    with ops.backend(backend):
        found = ops.gather_compact([w, w, w], [None, index(0), index(0, 1, 2, 3)])
    assert len({t.untyped_storage().data_ptr() for t in [w, *found]}) == 4
    for t in found:
        assert t.is_contiguous()
        assert t.untyped_storage().nbytes() == t.numel() * 4


@BACKENDS
def test_results_are_detached(backend):
    w, s = torch.randn(3, 3, requires_grad=True), torch.randn(3)
    with ops.backend(backend):
        assert not one(w, index(0)).requires_grad
        assert not one(w, None, None, s).requires_grad


@BACKENDS
def test_masks_fold_into_a_projection(backend):
    """down(mask * up(x)), with units of mask 0 cut and the others' values in the columns."""
    x, up, bias, down = torch.randn(7, 4), torch.randn(6, 4), torch.randn(6), torch.randn(4, 6)
    mask = torch.tensor([1.0, 0.0, 0.7, 0.0, 1.5, 1.0])
    kept = mask.nonzero()[:, 0]
    with ops.backend(backend):
        tensors, rows, columns = [up, bias, down], [kept, kept, None], [None, None, kept]
        u, b, d = ops.gather_compact(tensors, rows, columns, column_scales=[None, None, mask[kept]])
    found = torch.nn.functional.linear(x, u, b).relu() @ d.T
    x, up, bias, down, mask = (t.double() for t in (x, up, bias, down, mask))
    numerics.ratio(found, (mask * torch.nn.functional.linear(x, up, bias).relu()) @ down.T)


def test_nothing_to_cut():
    assert ops.gather_compact([], []) == []


@KERNELS
def test_what_a_kernel_does_not_serve(candidate):
    w = torch.randn(3, 3, dtype=torch.float64)
    with ops.backend(candidate.backend):
        assert one(w, index(1)).tolist() == w[1:2].tolist()
        with pytest.raises(BackendError, match=r"no kernel for scaled torch.float64"):
            one(w, None, None, torch.ones(3))
        with pytest.raises(BackendError, match=r"no kernel for torch.int8"):
            one(w.to(torch.int8), index(1))


def test_bytes_and_flops():
    w, kept, scale = torch.randn(3, 4), index(0, 2), torch.ones(2)
    args = [w, w[0]], [kept, None], [None, None], [scale, None], [None, None]
    assert flops(*args) == 8
    assert bytes_moved(*args, 1) == 4 * (8 + 8 + 4 + 4) + 16 + 8
    assert bytes_moved(*args, 4) == 4 * (8 + 16 + 4 + 4) + 16 + 8


V, S = torch.randn(3), torch.ones(3)
FULL = {"tensors": [torch.randn(3, 4)], "rows": [None], "columns": [None]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": []}, "1 tensors but 0 rows"),
        ({"column_scales": [None, None]}, "1 tensors but 2 column_scales"),
        ({"multiple": 0}, "multiple must be at least 1, got 0"),
        ({"tensors": [torch.randn(2, 3, 4)]}, r"tensors\[0\] is \[2, 3, 4\] on cpu"),
        ({"tensors": [V, V.to("meta")], "rows": [None] * 2, "columns": [None] * 2}, r"tensors\[1\] is \[3\] on meta"),
        ({"tensors": [V], "columns": [index(0)]}, r"columns\[0\] and column_scales\[0\] must be None, .* \[3\]"),
        (
            {"rows": [torch.tensor([0, 1], dtype=torch.int32)]},
            r"rows\[0\] must be int64 \[kept\], got torch.int32 \[2\]",
        ),
        ({"columns": [index(0)[None]]}, r"columns\[0\] must be int64 \[kept\], got torch.int64 \[1, 1\]"),
        ({"rows": [index(0).to("meta")]}, r"rows\[0\] is on meta; move it to cpu"),
        ({"rows": [index(0, 3)]}, r"rows\[0\] must increase strictly within 0 to 2, got 2 indices from 0 to 3"),
        ({"columns": [index(-1, 3)]}, r"columns\[0\] must increase strictly within 0 to 3, got 2 indices from -1 to 3"),
        ({"columns": [index(0, 2, 1, 3)]}, r"columns\[0\] must increase strictly"),
        ({"rows": [index(0, 0, 2)]}, r"rows\[0\] must increase strictly"),
        ({"rows": [index(0)], "row_scales": [S]}, r"row_scales\[0\] must be floating \[1\] .* got torch.float32 \[3\]"),
        ({"row_scales": [index(1, 1, 1)]}, r"row_scales\[0\] must be floating \[3\] .* got torch.int64"),
        ({"tensors": [torch.ones(3, 4, dtype=torch.int32)], "row_scales": [S]}, r"for torch.int32"),
        ({"row_scales": [S.to("meta")]}, r"row_scales\[0\] is on meta, its tensor on cpu"),
    ],
)
def test_bad_arguments(change, message):
    with pytest.raises(InputError, match=message):
        ops.gather_compact(**{**FULL, **change})


def test_one_index_for_two_sizes_is_checked_for_both():
    kept = index(0, 3)
    with pytest.raises(InputError, match=r"rows\[1\] must increase strictly within 0 to 2"):
        ops.gather_compact([torch.randn(4), torch.randn(3)], [kept, kept])
