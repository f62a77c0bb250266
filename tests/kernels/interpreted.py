"""Every Triton kernel in Triton's interpreter, on the CPU. Run by test_triton.py in a process of its own.

    TRITON_INTERPRET=1 python -m pytest tests/kernels/interpreted.py

Cases that differ in nothing but the dtype take turns: each shape in one of its dtypes, each dtype at some shapes. With
`-m exhaustive` every case is tried.

bfloat16 is left to kernels without `tl.dot` (`DOT` in their module says so), whose bfloat16 operands the interpreter
multiplies as integers, and which do not add what they rounded (`ADDS_ROUNDED`): it rounds to bfloat16 towards zero.
"""

import importlib
import itertools
import re

import pytest
import torch

import pyprune.ops as ops
from pyprune.testing import ladder
from pyprune.testing.cases import batches, cases, leaves

PAIRS = [(op, c) for op in ops.OPS.values() for c in op.candidates if c.backend == "triton"]


def each(pairs):
    return pytest.mark.parametrize(("op", "candidate"), pairs, ids=[op.name for op, _ in pairs])


def without_bfloat16(op):
    module = importlib.import_module(f"pyprune.triton_kernels.{op.name}")
    return module.DOT or getattr(module, "ADDS_ROUNDED", False)


def supported(op, candidate):
    """(name, arguments) of the cases that the interpreter gets right."""
    for name, args in cases(op, "cpu", tiny=True):
        bfloat16 = any(t.dtype == torch.bfloat16 for t in leaves(args))
        if candidate.supports(*args)[0] and not (bfloat16 and without_bfloat16(op)):
            yield name, args


def taking_turns(found):
    """One of each run of cases whose names differ in the dtype alone."""
    runs = itertools.groupby(found, key=lambda case: re.sub(r"torch\.b?float\d+", "", case[0]))
    for turn, (_, run) in enumerate(runs):
        run = list(run)
        yield run[turn % len(run)]


def dtypes(found):
    return {t.dtype for _, args in found for t in leaves(args)}


@each(PAIRS)
@pytest.mark.parametrize(
    "exhaustive", [False, pytest.param(True, marks=pytest.mark.exhaustive)], ids=["taking turns", "exhaustive"]
)
def test_every_case(op, candidate, exhaustive):
    every = list(supported(op, candidate))
    tried = every if exhaustive else list(taking_turns(every))
    assert len(tried) >= 5
    assert dtypes(tried) == dtypes(every)
    for name, args in tried:
        try:
            ladder.inside_its_buffers(op, candidate, args)
        except Exception as error:
            raise AssertionError(f"{op.name}, {name}: {error}") from error


@each([(op, candidate) for op, candidate in PAIRS if batches(op, "cpu")])
def test_same_bits_in_any_batch(op, candidate):
    assert ladder.same_in_every_batch(op, candidate, "cpu") >= 2


def test_auto_never_interprets():
    x = torch.ones(1, 2, 3)
    assert ops.OPS["prod_reduce"].select(x, x, None, 1, 0).backend != "triton"
