"""What `pyprune bench` measures: every op has a case, rates follow from the floor, and the fastest is named."""

import pytest
import torch

from pyprune.bench import ops as bench_ops
from pyprune.bench.ceilings import Ceilings, ceilings
from pyprune.bench.kernels import OWN, Measured, chosen_ops, measure, measure_case, record, unknown_providers
from pyprune.bench.ops import Case
from pyprune.bench.results import Results, table_path
from pyprune.bench.timing import Timing
from pyprune.core.errors import InputError
from pyprune.ops import OPS
from pyprune.testing.cases import complete, leaves


def timing(seconds):
    return Timing(seconds, seconds, seconds)


def measured(moved=100, flops=10, **seconds):
    limits = Ceilings(bytes_s=1e3, flops_s=1e3)
    timings = {name: timing(s) for name, s in seconds.items()}
    return Measured("op", "2x3", "fp32", "cpp", moved, flops, limits, timings, frozenset({"reading"}))


@pytest.mark.parametrize("op", OPS.values(), ids=lambda op: op.name)
def test_every_op_is_measured(op):
    (found, *_) = measure(op, tiny=True, repeats=1)
    assert found.op == op.name
    assert OWN in found.timings
    assert len(found.timings) > len(found.yardsticks) + (op.candidates[-2].backend == "torch")
    assert found.bytes_moved > 0


@pytest.mark.parametrize("op", OPS.values(), ids=lambda op: op.name)
def test_peers_do_the_same_job(op):
    """Everything that an eager peer gives is an output of the op, to a few digits."""
    (case, *_) = bench_ops.cases(op, "cpu", tiny=True)
    if "eager" not in case.peers:
        pytest.skip("no eager peer")
    arguments = complete(op, case.arguments())
    own, peer = op.overload(*arguments), case.peers["eager"](*arguments)
    if own is None:
        return
    for b in leaves(peer):
        same = [a.double() for a in leaves(own) if a.shape == b.shape]
        assert any(torch.allclose(a, b.double(), rtol=1e-2, atol=1e-3) for a in same)


@pytest.mark.parametrize("op", OPS.values(), ids=lambda op: op.name)
def test_any_gpu_is_measured_like_the_first(op):
    """Cases are described without touching the device."""
    first, second = ([(c.shape, c.dtype, sorted(c.peers)) for c in bench_ops.cases(op, d)] for d in ("cuda", "cuda:1"))
    assert first == second


def test_the_floor_decides_over_the_rate():
    memory = measured(moved=100, flops=10, pyprune=0.2, eager=0.4)
    assert memory.floor_s == 0.1
    assert memory.rate("eager") == ("GB/s", 100 / 0.4 / 1e9)
    assert memory.share(OWN) == 0.5
    compute = measured(moved=10, flops=100, pyprune=0.2)
    assert compute.rate(OWN) == ("TFLOP/s", 100 / 0.2 / 1e12)


def test_yardsticks_do_not_win():
    assert measured(pyprune=0.2, eager=0.3, reading=0.1).winner == OWN
    assert measured(pyprune=0.4, eager=0.3, reading=0.1).winner == "eager"


def test_only_the_asked_providers_are_timed():
    (found,) = measure(OPS["prod_reduce"], providers=["einsum"], tiny=True, repeats=1)
    assert set(found.timings) == {OWN, "einsum"}
    assert unknown_providers([OPS["prod_reduce"]], "cpu", ["einsum", "eager", "compile", "nobody"]) == ["nobody"]


def test_unknown_op():
    with pytest.raises(InputError, match="'prod_reduced' is no op; choose from"):
        chosen_ops(["prod_reduced"])
    assert chosen_ops([]) == list(OPS.values())


def test_rows(tmp_path):
    results = Results("op", path=table_path(tmp_path, "cpu"), device="cpu")
    record(results, measured(pyprune=0.2, eager=0.3))
    rows = {(r["provider"], r["metric"]): float(r["value"]) for r in results.rows}
    assert rows["eager", "ratio to pyprune"] == pytest.approx(1.5)
    assert rows["pyprune", "ms"] == pytest.approx(200)
    assert rows["pyprune", "share of ceiling"] == pytest.approx(0.5)
    assert {r["case"] for r in results.rows} == {"2x3 fp32"}


def test_ceilings_are_measured_once():
    assert ceilings("cpu", "fp32", tiny=True) is ceilings("cpu", "fp32", tiny=True)
    assert ceilings("cpu", "fp32", tiny=True).seconds(0, 0) == 0


def test_a_cpu_without_units_for_a_dtype_is_measured_by_float32():
    assert ceilings("cpu", "bf16", tiny=True).flops_s >= ceilings("cpu", "fp32", tiny=True).flops_s


def test_every_case_is_compiled(monkeypatch):
    """`torch.compile` gives a function up after eight shapes, and then runs it as it is."""
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: compile_(function, backend=backend, **options))

    def eager(x, *_):
        return x.sum(1), x, x

    op = OPS["channel_stats"]
    for n in range(10):
        case = Case(f"{n}", "fp32", lambda n=n: (torch.ones(1, 2, 3 + n), None, None), {"eager": eager})
        measure_case(op, case, providers=["compile"], repeats=1)
    assert len(compiled) == 10
