"""The rules of choosing a backend, on an op made for the purpose."""

import logging
import subprocess
import sys

import pytest
import torch

import pyprune.ops as ops
from pyprune.core.errors import BackendError
from pyprune.ops import _dispatch, _native
from pyprune.testing import numerics


def make(name, **candidate):
    fast = {"backend": "cpp", "devices": ("cpu",), "run": lambda x, n: x + n, **candidate}
    return ops.Op(
        name=name,
        schema="(Tensor x, int n=3) -> Tensor",
        candidates=(ops.Candidate(**fast), ops.Candidate("torch", ("cpu", "cuda"), lambda x, n: x - n)),
        check=lambda x, n: None,
        samples=lambda: iter(()),
        bytes_moved=lambda x, n: 0,
        flops=lambda x, n: 0,
    )


@pytest.fixture
def op(request):
    created = []

    def create(**candidate):
        created.append(make(f"dispatch_test_{request.node.name.translate(str.maketrans('[]-', '___'))}", **candidate))
        return created[-1]

    yield create
    for made in created:
        del ops.OPS[made.name]


ONE = torch.ones(1)


def test_auto_takes_the_best_and_fills_defaults(op):
    assert op().overload(ONE) == 4


def test_auto_falls_back_with_one_line_per_reason(op, caplog):
    made = op(supports=lambda x, n: (n < 5, f"n={n}"))
    with caplog.at_level(logging.INFO, logger="pyprune.ops"):
        assert [made.overload(ONE, n).item() for n in (1, 7, 7, 8)] == [2, -6, -6, -7]
    lines = [r.getMessage() for r in caplog.records]
    assert lines == [f"{made.name}: not on cpp: n={n}; using torch" for n in (7, 8)]


def test_kernel_exceptions_are_not_caught(op):
    def run(x, n):
        raise ZeroDivisionError("from the kernel")

    with pytest.raises(ZeroDivisionError, match="from the kernel"):
        op(run=run).overload(ONE)


@pytest.mark.parametrize("how", ["context", "environment"])
def test_explicit_choice_raises_with_the_reason(op, how, monkeypatch):
    made = op(available=lambda: "it is not built")
    if how == "environment":
        monkeypatch.setenv("PYPRUNE_BACKEND", "cpp")
        with pytest.raises(BackendError, match="'cpp' was asked for but it is not built"):
            made.overload(ONE)
    else:
        with ops.backend("cpp"), pytest.raises(BackendError, match="'cpp' was asked for but it is not built"):
            made.overload(ONE)


def test_explicit_choice_of_a_backend_the_op_lacks(op):
    with ops.backend("triton"), pytest.raises(BackendError, match="has only cpp, torch"):
        op().overload(ONE)


def test_auto_passes_over_what_is_on_request(op, caplog):
    made = op(on_request=True)
    with caplog.at_level(logging.INFO, logger="pyprune.ops"):
        assert made.overload(ONE) == -2
    reason = "not measured to be faster yet: choose it by name"
    assert [r.getMessage() for r in caplog.records] == [f"{made.name}: not on cpp: {reason}; using torch"]
    with ops.backend("cpp"):
        assert made.overload(ONE) == 4
    assert [r.available for r in ops.table() if r.op == made.name] == [True, True]


def test_choice_for_one_op_and_nesting(op, monkeypatch):
    made = op()
    monkeypatch.setenv("PYPRUNE_BACKEND", "torch")
    assert made.overload(ONE) == -2
    with ops.backend(f"{made.name}=cpp"):
        assert made.overload(ONE) == 4
        with ops.backend("prod_reduce=torch"):
            assert made.overload(ONE) == 4
        with ops.backend("torch"):
            assert made.overload(ONE) == -2
    assert made.overload(ONE) == -2
    with ops.backend("auto"):
        assert made.overload(ONE) == 4


def test_choice_is_undone_after_an_exception(op):
    with pytest.raises(KeyError), ops.backend("torch"):
        raise KeyError
    assert _dispatch.chosen_backend("prod_reduce") == "auto"


@pytest.mark.parametrize(("choice", "message"), [("fast", "no backend"), ("no_op=cpp", "no op")])
def test_unknown_names(choice, message):
    with pytest.raises(BackendError, match=message), ops.backend(choice):
        pass


def test_table_has_a_reason_for_everything_missing():
    rows = ops.table()
    assert {r.op for r in rows} == set(ops.OPS)
    assert all(r.available or r.reason for r in rows)
    assert all(r.available for r in rows if r.backend == "torch")


def test_a_raw_op_of_a_missing_library_says_why(monkeypatch, tmp_path):
    monkeypatch.setattr(_native, "_PACKAGE", tmp_path)
    _native.missing.cache_clear()
    try:
        with pytest.raises(BackendError, match=r"prod_reduce: .*_C.abi3.so is not built"):
            _native.op("cpp", "prod_reduce")
        with pytest.raises(BackendError, match="'cpp' was asked for but"), ops.backend("cpp"):
            ops.prod_reduce(torch.ones(1, 2, 3), torch.ones(1, 2, 3))
        numerics.exact(ops.prod_reduce(torch.ones(1, 2, 3), torch.ones(1, 2, 3)), torch.full((1, 3), 2.0))
    finally:
        _native.missing.cache_clear()


def test_import_is_lean():
    code = "import sys, pyprune.ops; print([m for m in ('transformers', 'triton', 'scipy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
