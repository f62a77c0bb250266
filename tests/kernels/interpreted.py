"""The Triton kernels in Triton's interpreter, on the CPU. Run by test_triton.py in a process of its own.

    TRITON_INTERPRET=1 python -m pytest tests/kernels/interpreted.py

bfloat16 appears only where a kernel has no `tl.dot`: the interpreter multiplies bfloat16 operands as integers.
"""

import pytest
import torch

import pyprune.ops as ops
from pyprune.ops.hadamard_gram import reference as hadamard_reference
from pyprune.ops.prod_reduce import reference as prod_reference
from pyprune.testing import numerics


def pair(*shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(*shape, generator=generator).to(dtype) for _ in range(2))


def prod_reduce(x, y, cu_seqlens=None, group=1, mod_group=0):
    args = cu_seqlens, group, mod_group
    with ops.backend("triton"), numerics.poisoned():
        actual = ops.prod_reduce(x, y, *args)
    truth, same = prod_reference(x.double(), y.double(), *args), prod_reference(x, y, *args)
    numerics.budget(actual, truth, same, numerics.RUNNING_SUM)
    return actual


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("shape", "group", "mod_group"),
    [((2, 37, 100), 1, 0), ((1, 1, 3), 3, 0), ((2, 197, 192), 64, 0), ((2, 13, 330), 110, 0), ((2, 600, 99), 0, 33)],
)
def test_prod_reduce(dtype, shape, group, mod_group):
    prod_reduce(*pair(*shape, dtype=dtype), None, group or 1, mod_group)


@pytest.mark.parametrize("offset_dtype", [torch.int32, torch.int64])
def test_prod_reduce_ragged_ignores_pads(offset_dtype):
    x, y = pair(2000, 20)
    for t in (x, y):
        t[:3] = torch.nan
        t[1990:] = torch.nan
    offsets = torch.tensor([3, 4, 4, 511, 1100, 1100, 1990], dtype=offset_dtype)
    prod_reduce(x, y, offsets, 2)


def test_prod_reduce_empty_batches():
    x, y = pair(6, 4)
    zeros = prod_reduce(x, y, torch.tensor([2, 2, 2]))
    numerics.exact(zeros, torch.zeros(2, 4))
    with ops.backend("triton"):
        assert ops.prod_reduce(x, y, torch.tensor([0]), group=2).shape == (0, 2)


def test_prod_reduce_bits_do_not_depend_on_the_batch():
    x, y = pair(3, 1100, 30)
    together = prod_reduce(x, y, group=3)
    numerics.exact(prod_reduce(x.flatten(0, 1), y.flatten(0, 1), torch.arange(4) * 1100, 3), together)
    numerics.exact(torch.cat([prod_reduce(x[b : b + 1], y[b : b + 1], group=3) for b in range(3)]), together)


def test_prod_reduce_strides():
    x, y = pair(3, 11, 64)
    wide = torch.full((11, 3, 96), torch.nan)
    wide[:, :, 16:80] = x.transpose(0, 1)
    numerics.exact(prod_reduce(wide[:, :, 16:80].transpose(0, 1), y), prod_reduce(x, y))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("tokens", "units", "group", "d"),
    [(37, 100, 1, 20), (130, 33, 16, 40), (5, 3, 64, 7), (1, 1, 1, 1), (70, 300, 1, 9)],
)
def test_hadamard_gram(dtype, tokens, units, group, d):
    h, _ = pair(tokens, units * group, dtype=dtype)
    w, _ = pair(d, units * group, dtype=dtype)
    target, _ = pair(tokens, 2 * d, dtype=dtype)
    args = h, w.T, target[:, :d], group
    with ops.backend("triton"), numerics.poisoned():
        actual = ops.hadamard_gram(*args)
    truth = hadamard_reference(*(t.double() for t in args[:3]), group)
    same = hadamard_reference(*args)
    for a, t, s in zip(actual, truth, same, strict=True):
        numerics.budget(a, t, s, numerics.RUNNING_SUM)
    numerics.exact(actual[0], actual[0].T)


def test_hadamard_gram_without_target_or_tokens():
    h, _ = pair(4, 6)
    w, target = pair(6, 5)
    with ops.backend("triton"), numerics.poisoned():
        numerics.exact(ops.hadamard_gram(h, w)[1], torch.zeros(6))
        for out in ops.hadamard_gram(h[:0], w, target[:0], 2):
            numerics.exact(out, torch.zeros_like(out))


def test_auto_never_interprets():
    x, y = pair(1, 2, 3)
    assert ops.OPS["prod_reduce"].select(x, y, None, 1, 0).backend != "triton"
