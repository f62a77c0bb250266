"""The package in a folder of its own, compiled for this machine or with libraries that are built already."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from time import monotonic

from benchmarks.gpu.group import run
from benchmarks.gpu.record import Check

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = {"cpu": "_C.abi3.so", "cuda": "_C_cuda.abi3.so"}
LIMIT_S = 240
# What a build neither needs nor should find: above all the objects and libraries of other builds.
UNNEEDED = ("build", "dist", "out", "benchmarks", "tests", "docs", "*.so", "*.egg-info", "__pycache__", ".*")


def install(site: Path, modes: tuple[str, ...], environment: dict[str, str]) -> list[Check]:
    """Build and install with the first of `modes` (of PYPRUNE_BUILD) that works, or else without libraries."""
    checks = []
    for mode in modes:
        checks.append(pip_install(site, mode, environment))
        if checks[-1].status == "passed":
            return checks
    lay_out(site, libraries=False)
    return checks


def pip_install(site: Path, mode: str, environment: dict[str, str]) -> Check:
    """`pip install --target` from a copy of the sources: with no index, no dependencies, no isolation."""
    source = site.parent / f"source-{mode}"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*UNNEEDED))
    flags = ["--no-deps", "--no-build-isolation", "--no-index", "--no-compile", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *flags, "--target", str(site), str(source)]
    name, start = f"pip install, PYPRUNE_BUILD={mode}", monotonic()
    try:
        done = run(command, {**environment, "PYPRUNE_BUILD": mode}, LIMIT_S)
    except subprocess.TimeoutExpired:
        return Check(name, "failed", f"not through after {LIMIT_S} s", monotonic() - start)
    if done.returncode == 0:
        return Check(name, "passed", built(site), monotonic() - start)
    print("\n".join(done.stdout.splitlines()[-60:]))
    return Check(name, "failed", cause(done.stdout), monotonic() - start)


def cause(output: str) -> str:
    """The line of a failed build that says why."""
    if "No module named pip" in output:
        return "this python3 has no pip: bring built libraries and give --no-build"
    if "Cannot import 'setuptools" in output or "No module named 'setuptools'" in output:
        return "this python3 has no setuptools: install it, or bring built libraries and give --no-build"
    # What pip prints behind the build's own output only says that the build failed.
    lines = [line.strip() for line in output.partition("[end of output]")[0].splitlines() if line.strip()]
    telling = [line for line in lines if "cannot build without" in line or re.search(r"[:)] (fatal )?error\b", line)]
    return telling[0] if telling else lines[-1] if lines else "no output"


def lay_out(site: Path, libraries: bool) -> None:
    """The files where an installation has them, with the checkout's own built libraries or with none."""
    ignore = shutil.ignore_patterns("__pycache__", *(() if libraries else ("*.so",)))
    shutil.copytree(ROOT / "pyprune", site / "pyprune", ignore=ignore, dirs_exist_ok=True)
    shutil.copytree(ROOT / "triton_kernels", site / "pyprune" / "triton_kernels", ignore=ignore, dirs_exist_ok=True)


def prebuilt(site: Path, needs_cuda: bool) -> list[Check]:
    """Lay out the package with the libraries that lie in the checkout; those that this device needs must be there."""
    lay_out(site, libraries=True)
    checks = []
    for mode, library in LIBRARIES.items():
        name = f"prebuilt pyprune/{library}"
        if (site / "pyprune" / library).exists():
            checks.append(Check(name, "passed"))
        else:
            remedy = f"not there; build it with PYPRUNE_BUILD={mode} pip install -e ., or run without --no-build"
            checks.append(Check(name, "failed" if needs_cuda else "skipped", remedy))
    return checks


def built(site: Path) -> str:
    found = [library for library in LIBRARIES.values() if (site / "pyprune" / library).exists()]
    return " and ".join(found) or "no libraries"


def environment(scratch: Path, site: Path, dry: bool) -> dict[str, str]:
    """For the build and the sections: the installed package first, caches in the scratch folder, no network."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYPRUNE_BACKEND", "TRITON_INTERPRET")}
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    caches = {name: str(scratch / name.lower()) for name in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")}
    quiet = {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
    }
    # cuBLAS repeats its bits only with a workspace of its own.
    own = {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "CUBLAS_WORKSPACE_CONFIG": ":4096:8", **caches, **quiet}
    # Tiny shapes are slower on two threads than on one.
    return {**kept, **own, **({"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"} if dry else {})}
