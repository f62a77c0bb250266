"""Triton kernels with no GPU: their results in the interpreter, their machine code from the ahead-of-time compiler."""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import aot
import pytest
from pyprune.triton_kernels import COUNTS

from pyprune import ops

pytest.importorskip("triton", reason="triton is not installed")

HERE = Path(__file__).parent
TURNS = pytest.mark.parametrize(
    "exhaustive", [False, pytest.param(True, marks=pytest.mark.exhaustive)], ids=["taking turns", "exhaustive"]
)


def release(package):
    return tuple(int(part) for part in version(package).split(".")[:2])


def clean(**environment):
    return {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "PYPRUNE_BACKEND")} | environment


@pytest.mark.skipif(
    release("triton") < (3, 7) and release("numpy") >= (2, 4),
    reason="Triton 3.6's interpreter fails on any run-time range() with NumPy 2.4",
)
@TURNS
def test_interpreted(exhaustive):
    marked = ["-m", "exhaustive"] if exhaustive else []
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *marked, str(HERE / "interpreted.py")]
    done = subprocess.run(command, env=clean(TRITON_INTERPRET="1"), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def compiled(folder, exhaustive):
    """Rows of aot.py, from as many processes as there are cores."""
    shards = min(os.cpu_count() or 1, 8)
    # Names of source lines in the code tell us nothing, and cost a tenth of the time.
    environment = clean(TRITON_CACHE_DIR=str(folder), TRITON_DISABLE_LINE_INFO="1")
    command = [sys.executable, str(HERE / "aot.py"), *(["--exhaustive"] if exhaustive else [])]
    running = [
        subprocess.Popen([*command, str(i), str(shards)], env=environment, stdout=subprocess.PIPE, text=True)
        for i in range(shards)
    ]
    outputs = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0] * shards
    return [json.loads(line) for output in outputs for line in output.splitlines()]


@TURNS
def test_machine_code(exhaustive, tmp_path):
    known = {spec["name"]: spec for spec in aot.specs()}
    codes = compiled(tmp_path, exhaustive)
    assert sorted((c["name"], c["sm"]) for c in codes) == sorted((s["name"], sm) for s, sm in aot.jobs(exhaustive))
    for code in codes:
        spec, where = known[code["name"]], f"{code['name']} sm_{code['sm']}"
        assert (code["spills"], code["stack"]) == (0, 0), f"{where} spills"
        assert code["registers"] <= spec["max_registers"], f"{where} uses {code['registers']} registers"
        assert code["shared"] <= spec.get("max_shared", 0), f"{where} uses {code['shared']} bytes of shared memory"
        narrow = code["narrow_products"]
        assert narrow <= spec.get("narrow_products", 0), f"{where}: {narrow} products of 32 bits may wrap"
        missing = set(spec.get("instructions", ())) - set(code["instructions"])
        assert not missing, f"{where} lacks {missing}: it has {code['instructions']}"
        if spec.get("tensor_cores"):
            unit = {80: "HMMA", 90: "HGMMA", 100: "UTCHMMA"}[code["sm"]]
            assert any(i.startswith(unit) for i in code["instructions"]), f"{where} does not use {unit}"


def test_every_kernel_is_compiled():
    """What is launched is called `<name>_kernel`, device functions are not."""
    kernels = {
        (path.stem, name)
        for path in (HERE.parents[1] / "triton_kernels").glob("*.py")
        for name in re.findall(
            r"^@triton\.jit(?:\(.*\))?\ndef (\w+_kernel)\(", path.read_text(encoding="utf-8"), re.MULTILINE
        )
    }
    specs = [spec["kernel"].fn.__code__ for spec in aot.specs()]
    assert kernels == {(Path(code.co_filename).stem, code.co_name) for code in specs}
    assert {op.name for op in ops.OPS.values() if any(c.backend == "triton" for c in op.candidates)} <= {
        module for module, _ in kernels
    }


@pytest.mark.parametrize("exhaustive", [False, True])
def test_every_specialisation_and_every_kernel_on_every_architecture(exhaustive):
    specs, jobs = aot.specs(), aot.jobs(exhaustive)
    assert len({spec["name"] for spec in specs}) == len(specs)
    assert {spec["name"] for spec, _ in jobs} == {spec["name"] for spec in specs}
    on_all = {(spec["name" if exhaustive else "kernel"], sm) for spec in specs for sm in aot.ARCHITECTURES}
    assert {(spec["name" if exhaustive else "kernel"], sm) for spec, sm in jobs} == on_all


def test_products_that_may_wrap_are_counted():
    ttir = """
      %c4_i32 = arith.constant 4 : i32
      %0 = arith.muli %arg0, %c4_i32 : i32
      %1 = tt.splat %c4_i32 : i32 -> tensor<16xi32>
      %2 = arith.muli %1, %x : tensor<16xi32>
      %3 = arith.muli %arg0, %arg1 : i64
    """
    assert aot.narrow_products(ttir) == 0
    assert (
        aot.narrow_products(
            ttir + "%4 = arith.muli %x, %arg1 : i32 loc(#loc1)\n%5 = arith.muli %x, %y : tensor<2x4xi32>"
        )
        == 2
    )


def test_no_kernel_is_compiled_anew_for_another_count():
    kernels = [spec["kernel"] for spec in aot.specs()]
    assert [
        (k.fn.__name__, p.name) for k in kernels for p in k.params if p.name in COUNTS and not p.do_not_specialize
    ] == []
