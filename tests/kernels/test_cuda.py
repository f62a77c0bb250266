"""The CUDA sources compile for the H100 without spilling; nothing is run. Needs nvcc, but neither a GPU nor a CUDA
torch.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
NVCC = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
SOURCES = sorted(ROOT.glob("csrc/cuda/*.cu"))
# Kernels with more than 128 registers leave fewer than two blocks of 256 threads to an SM.
MAX_REGISTERS = 128


@pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")
@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.name)
def test_compiles_without_spills(source, tmp_path):
    torch_include = Path(torch.__file__).parent / "include"
    # Without -O3, which is for the host's part: ptxas optimises in any case.
    flags = ["-std=c++20", "-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020b000000000000", "-Xcompiler", "-fPIC"]
    target = ["-gencode=arch=compute_90a,code=sm_90a", "-Xptxas", "-v", "-c", str(source)]
    output = ["-o", str(tmp_path / "out.o"), f"-I{ROOT / 'csrc'}", "-isystem", str(torch_include)]
    done = subprocess.run([NVCC, *flags, *target, *output], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kernels = re.findall(r"Compiling entry function '(\w+)'", done.stderr)
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", done.stderr)]
    assert len(kernels) == len(frames) == len(registers)
    assert kernels
    for kernel, frame, used in zip(kernels, frames, registers, strict=True):
        assert frame == ("0", "0", "0"), f"{kernel}: stack frame, spill stores, spill loads {frame}"
        assert used <= MAX_REGISTERS, f"{kernel} uses {used} registers"
