"""Builds pyprune's compiled halves with ninja; everything else about the package is in pyproject.toml.

    PYPRUNE_BUILD=auto   (default) the CPU extension if torch and a C++ compiler are here; the CUDA extension as well if
                         that torch was built with CUDA and nvcc is here
    PYPRUNE_BUILD=none   pure Python: every op still works through its torch and Triton backends
    PYPRUNE_BUILD=cpu    the CPU extension, or fail
    PYPRUNE_BUILD=cuda   both extensions, or fail; needs nvcc but neither a GPU nor a CUDA build of torch
    TORCH_CUDA_ARCH_LIST GPU architectures, default "8.0;9.0a;10.0"
    MAX_JOBS             parallel compiler processes

Both extensions speak LibTorch's stable ABI of torch 2.11 and hold no Python symbol, so one build serves every Python
from 3.10 and every torch from 2.11. They are two libraries because the CUDA half names symbols that a CPU torch cannot
resolve.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
ABI = "-DTORCH_TARGET_VERSION=0x020b000000000000"
DEFAULT_ARCHS = "8.0;9.0a;10.0"

NINJA_RULES = """ninja_required_version = 1.5
rule cxx
  command = $cxx $cflags -MMD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
rule nvcc
  command = $nvcc $nvflags -MD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
rule link
  command = $cxx -shared $in -o $out $ldflags
"""


def find_torch():
    """The torch that is importable now, or None: pip's isolated builds have none."""
    try:
        import torch
    except ModuleNotFoundError:
        return None
    return torch


def find_nvcc():
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    candidates = ([f"{home}/bin/nvcc"] if home else []) + [shutil.which("nvcc") or "", "/usr/local/cuda/bin/nvcc"]
    return next((Path(c).resolve() for c in candidates if c and os.access(c, os.X_OK)), None)


def cuda_root(nvcc):
    """The toolkit's folder as nvcc itself reports it: the nvcc on PATH may be a wrapper script."""
    dry = subprocess.run(
        [nvcc, "--dryrun", "-c", "-x", "cu", "/dev/null"], capture_output=True, text=True, check=True
    ).stderr
    top = next(line.split("TOP=", 1)[1].strip() for line in dry.splitlines() if "TOP=" in line)
    return Path(top).resolve()


def find_ninja():
    found = shutil.which("ninja")
    if found:
        return found
    try:
        import ninja
    except ModuleNotFoundError:
        return None
    return str(Path(ninja.BIN_DIR) / "ninja")


def selected_extensions():
    """Which extensions PYPRUNE_BUILD asks for and this machine can build: a list of setuptools Extensions."""
    mode = os.environ.get("PYPRUNE_BUILD", "auto")
    if mode not in ("auto", "none", "cpu", "cuda"):
        sys.exit(f"PYPRUNE_BUILD={mode!r}: expected auto, none, cpu or cuda")
    if mode == "none":
        return []
    torch, cxx, nvcc, ninja = find_torch(), shutil.which(os.environ.get("CXX", "c++")), find_nvcc(), find_ninja()
    missing = [what for what, found in (("torch", torch), ("a C++ compiler", cxx), ("ninja", ninja)) if not found]
    if mode == "cuda" and not nvcc:
        missing.append("nvcc")
    if missing:
        if mode != "auto":
            sys.exit(f"PYPRUNE_BUILD={mode}: cannot build without {', '.join(missing)}")
        print(f"pyprune: no {', '.join(missing)} found: making a pure Python package", file=sys.stderr)
        return []
    relative = lambda pattern: sorted(str(p.relative_to(ROOT)) for p in ROOT.glob(pattern))  # noqa: E731
    extensions = [Extension("pyprune._C", relative("csrc/*.cpp") + relative("csrc/cpu/*.cpp"), py_limited_api=True)]
    if mode == "cuda" or (torch.version.cuda and nvcc):
        extensions.append(Extension("pyprune._C_cuda", relative("csrc/cuda/*.c*[!h]"), py_limited_api=True))
    return extensions


class NinjaBuild(build_ext):
    """One build.ninja per extension in the build folder; ninja then rebuilds only what changed."""

    def build_extension(self, ext):
        import torch

        name = ext.name.rpartition(".")[2]
        # A fixed folder: pip's own build folder is new each time, which would compile everything again.
        build = ROOT / "build" / f"{name}-torch{torch.__version__}"
        build.mkdir(parents=True, exist_ok=True)
        library = build / f"{name}.abi3.so"
        build.joinpath("build.ninja").write_text(self.ninja_file(ext, library, Path(torch.__file__).parent))
        jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
        subprocess.run([find_ninja(), "-C", str(build), *jobs], check=True)
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        # Replaced by rename: a process that has the old library mapped keeps its copy.
        partial = target.with_suffix(".partial")
        shutil.copy2(library, partial)
        partial.replace(target)

    @staticmethod
    def ninja_file(ext, library, torch_dir):
        includes = f"-I{ROOT}/csrc -isystem {torch_dir}/include -isystem {torch_dir}/include/torch/csrc/api/include"
        # GCC 12 reports its own AVX-512 intrinsics as maybe uninitialised (GCC bug 105593).
        warnings = "-Wall -Wextra -Wno-unused-parameter -Wno-maybe-uninitialized"
        # With exception flags, which nobody reads, GCC vectorises no loop that selects between results.
        cflags = f"-O3 -fno-trapping-math -std=c++20 -fPIC -fvisibility=hidden {warnings} {ABI} {includes}"
        ldflags = f"-L{torch_dir}/lib -ltorch -ltorch_cpu -lc10"
        lines = [NINJA_RULES, f"cxx = {os.environ.get('CXX', 'c++')}", f"cflags = {cflags}"]
        if ext.name.endswith("_cuda"):
            nvcc = find_nvcc()
            root = cuda_root(nvcc)
            # cudart is linked statically and torch's symbols stay open: they come from the torch that loads the
            # library.
            ldflags = f"-L{root}/lib64 -L{root}/targets/x86_64-linux/lib -lcudart_static -ldl -lrt -lpthread"
            lines += [f"nvcc = {nvcc}", f"nvflags = {nvcc_flags()} {includes}"]
        lines.append(f"ldflags = {ldflags}")
        objects = []
        for source in ext.sources:
            obj = source.replace("/", "_") + ".o"
            rule = "nvcc" if source.endswith(".cu") else "cxx"
            lines.append(f"build {obj}: {rule} {ROOT / source}")
            objects.append(obj)
        lines.append(f"build {library.name}: link {' '.join(objects)}\ndefault {library.name}\n")
        return "\n".join(lines)


def nvcc_flags():
    gencode = []
    for arch in os.environ.get("TORCH_CUDA_ARCH_LIST", DEFAULT_ARCHS).replace(" ", ";").split(";"):
        ptx = arch.endswith("+PTX")
        number = arch.removesuffix("+PTX").replace(".", "")
        gencode.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if ptx:
            gencode.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return f"-O3 -std=c++20 -DUSE_CUDA {ABI} -Xcompiler -fPIC,-fvisibility=hidden {' '.join(gencode)}"


extensions = selected_extensions()
setup(
    # triton_kernels stands at the top for its readers and is installed inside the package: as a top-level package it
    # would collide with the one of that name which vLLM and transformers use.
    packages=[*find_packages(include=["pyprune", "pyprune.*"]), "pyprune.triton_kernels"],
    package_dir={"pyprune.triton_kernels": "triton_kernels"},
    ext_modules=extensions,
    cmdclass={"build_ext": NinjaBuild},
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if extensions else {},
)
