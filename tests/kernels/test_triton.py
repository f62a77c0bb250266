"""Triton kernels with no GPU: their results in the interpreter, their machine code from the ahead-of-time compiler."""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")

HERE = Path(__file__).parent
# Every kernel is compiled for sm_90, at 1.6 s each; these take one kernel per op.
OTHER_ARCHITECTURES = (80, 100)


def release(package):
    return tuple(int(part) for part in version(package).split(".")[:2])


def run(*command, **environment):
    env = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "PYPRUNE_BACKEND")} | environment
    return subprocess.run([sys.executable, *map(str, command)], env=env, capture_output=True, text=True)


@pytest.mark.skipif(
    release("triton") < (3, 7) and release("numpy") >= (2, 4),
    reason="Triton 3.6's interpreter fails on any run-time range() with NumPy 2.4",
)
def test_interpreted():
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", HERE / "interpreted.py", TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    cache = str(tmp_path_factory.mktemp("triton"))
    done = run(HERE / "aot.py", *OTHER_ARCHITECTURES, TRITON_CACHE_DIR=cache)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def limits():
    from aot import specs

    return {spec["name"]: spec for op_specs in specs().values() for spec in op_specs}


def test_machine_code(compiled):
    known = limits()
    assert {code["name"] for code in compiled if code["sm"] == 90} == set(known)
    assert {code["sm"] for code in compiled} == {80, 90, 100}
    for code in compiled:
        spec, where = known[code["name"]], f"{code['name']} sm_{code['sm']}"
        assert (code["spills"], code["stack"]) == (0, 0), f"{where} spills"
        assert code["registers"] <= spec["max_registers"], f"{where} uses {code['registers']} registers"
        missing = set(spec.get("instructions", ())) - set(code["instructions"])
        assert not missing, f"{where} lacks {missing}: it has {code['instructions']}"
        if spec.get("tensor_cores"):
            unit = {80: "HMMA", 90: "HGMMA", 100: "UTCHMMA"}[code["sm"]]
            assert any(i.startswith(unit) for i in code["instructions"]), f"{where} does not use {unit}"
