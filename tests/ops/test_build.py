"""The package without compiled halves, and the build's own refusals."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="needs the source tree")


def setup_py(mode, *arguments):
    command = [sys.executable, "setup.py", "-q", *map(str, arguments)]
    environment = os.environ | {"PYPRUNE_BUILD": mode}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_pure_wheel_has_the_kernels_where_they_are_imported_from(tmp_path):
    build = "build", "--build-base", tmp_path / "build", "egg_info", "--egg-base", tmp_path
    done = setup_py("none", *build, "bdist_wheel", "--dist-dir", tmp_path, "--bdist-dir", tmp_path / "bdist")
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "pyprune/triton_kernels/prod_reduce.py" in names
    assert "pyprune/ops/prod_reduce.py" in names
    assert not [n for n in names if n.endswith(".so") or n.startswith(("triton_kernels", "tests", "benchmarks"))]


def test_unknown_mode():
    done = setup_py("fast", "--version")
    assert done.returncode != 0
    assert "PYPRUNE_BUILD='fast': expected auto, none, cpu or cuda" in done.stderr


def test_explicit_mode_fails_without_its_tools():
    command = [sys.executable, "setup.py", "--version"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"PYPRUNE_BUILD": "cpu", "CXX": "no-such-compiler"},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "cannot build without a C++ compiler" in done.stderr


def test_sources_name_no_macro_that_torch_2_11_lacks():
    """The ABI of torch 2.11 is what the sources ask for, but macros of newer headers are visible all the same."""
    newer = "STABLE_TORCH_ERROR_CODE_CHECK"
    assert [str(p) for p in (ROOT / "csrc").rglob("*.*") if newer in p.read_text(encoding="utf-8")] == []
