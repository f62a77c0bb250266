"""Compiles the Triton kernels with no GPU and reads the machine code: one JSON line per (specialisation, architecture).

    python tests/kernels/aot.py [--exhaustive] [SHARD SHARDS]

Every specialisation is compiled for one of sm_80, sm_90 and sm_100, and every kernel for all of them; `--exhaustive`
compiles every specialisation for all of them. A program of its own because a process that imported Triton with
TRITON_INTERPRET=1 has no compiler.
"""

import importlib
import itertools
import json
import pkgutil
import re
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ARCHITECTURES = (80, 90, 100)


def specs() -> list[dict]:
    """The `AOT` lists of all modules of kernels. A spec has

    - name; kernel; signature, constexprs, divisible (arguments that are multiples of 16), options: what is compiled
    - max_registers, max_shared (bytes of shared memory, 0 unless given): what the machine code may use
    - instructions: what it must contain (on all architectures); tensor_cores: whether it must use them
    - narrow_products: 32-bit products of two run-time values, none unless given; each needs a reason in the kernel's
      module, because an address made from one wraps at 2^31
    """
    import pyprune.triton_kernels as kernels

    modules = [
        importlib.import_module(f"{kernels.__name__}.{found.name}") for found in pkgutil.iter_modules(kernels.__path__)
    ]
    return [spec for module in modules for spec in getattr(module, "AOT", ())]


def jobs(exhaustive: bool) -> list[tuple[dict, int]]:
    """(spec, architecture) of all that is compiled: the specs of a kernel take turns, unless `exhaustive`."""
    if exhaustive:
        return [(spec, capability) for spec in specs() for capability in ARCHITECTURES]
    found = []
    for _, group in itertools.groupby(specs(), key=lambda spec: spec["kernel"].fn):
        own = list(group)
        turns = max(len(own), len(ARCHITECTURES))
        found += [(own[turn % len(own)], ARCHITECTURES[turn % len(ARCHITECTURES)]) for turn in range(turns)]
    return found


def compile_spec(spec: dict, capability: int):
    """Compiled, with the pointer and stride divisibility that a launch on aligned tensors would find."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = spec["kernel"]
    names = kernel.arg_names
    signature = {n: spec["signature"].get(n, "constexpr") for n in names}
    divisible = {(names.index(n),): [["tt.divisibility", 16]] for n in spec["divisible"]}
    source = ASTSource(fn=kernel, signature=signature, constexprs=spec["constexprs"], attrs=divisible)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=spec["options"])


def narrow_products(ttir: str) -> int:
    """How many 32-bit multiplications of two values that are not constants Triton's intermediate code holds.

    Offsets are products of an index and a stride, so that without any no address wraps at 2^31 elements.
    """
    constants = set(re.findall(r"^\s*(%[\w#]+) = arith\.constant\b", ttir, re.MULTILINE))
    # A constant that was spread over a tensor is one still.
    for name, source in re.findall(r"^\s*(%[\w#]+) = tt\.splat (%[\w#]+)", ttir, re.MULTILINE):
        if source in constants:
            constants.add(name)
    products = re.findall(r"arith\.muli (%[\w#]+), (%[\w#]+)[^:\n]*: (?:tensor<[^>]*xi32|i32)", ttir)
    return sum(not {a, b} & constants for a, b in products)


def machine_code(cubin: bytes) -> bytes:
    """Of the one kernel in an ELF file: its section `.text.<name>`."""
    table, entry, count, names = *struct.unpack_from("<Q", cubin, 40), *struct.unpack_from("<3H", cubin, 58)
    sections = [struct.unpack_from("<I20xQQ", cubin, table + i * entry) for i in range(count)]
    (found,) = (
        cubin[at : at + size] for name, at, size in sections if cubin.startswith(b".text.", sections[names][1] + name)
    )
    return found


def tool(name: str, *arguments: str) -> str:
    """What one of the programs that Triton brings prints."""
    import triton.backends.nvidia

    path = Path(triton.backends.nvidia.__file__).parent / "bin" / name
    return subprocess.run([path, *arguments], capture_output=True, text=True, check=True).stdout


def instructions(cubins: list[bytes], capability: int) -> list[list[str]]:
    """Names of the instructions of each, which all are disassembled as one: nvdisasm takes half a second to start."""
    codes = [machine_code(cubin) for cubin in cubins]
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"".join(codes))
        file.flush()
        sass = tool("nvdisasm", "--binary", f"SM{capability}{'a' if capability >= 90 else ''}", file.name)
    rows = re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", sass, re.MULTILINE)
    size, stops = 16, list(itertools.accumulate(map(len, codes)))
    # Every one of them is there, so that none can be without a name.
    assert [int(address, 16) for address, _ in rows] == list(range(0, stops[-1], size))
    names = [name for _, name in rows]
    return [names[(stop - len(code)) // size : stop // size] for code, stop in zip(codes, stops, strict=True)]


def resources(cubin: bytes) -> dict:
    """Registers and bytes of stack of a thread."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = tool("cuobjdump", "-res-usage", file.name)
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", usage).groups()
    return {"registers": int(registers), "stack": int(stack)}


def rows(jobs: list[tuple[dict, int]]) -> Iterator[dict]:
    """What is in the code of each: spills are accesses of local memory."""
    compiled = [(spec["name"], capability, compile_spec(spec, capability)) for spec, capability in jobs]
    for capability in ARCHITECTURES:
        own = [(name, kernel) for name, found, kernel in compiled if found == capability]
        codes = instructions([kernel.asm["cubin"] for _, kernel in own], capability) if own else []
        for (name, kernel), code in zip(own, codes, strict=True):
            yield {
                "name": name,
                "sm": capability,
                "shared": kernel.metadata.shared,
                "narrow_products": narrow_products(kernel.asm["ttir"]),
                **resources(kernel.asm["cubin"]),
                "spills": sum(i.startswith(("LDL", "STL")) for i in code),
                "instructions": sorted(set(code)),
            }


if __name__ == "__main__":
    exhaustive = "--exhaustive" in sys.argv
    shard, shards = (int(argument) for argument in sys.argv[1 + exhaustive :] or (0, 1))
    for row in rows(jobs(exhaustive)[shard::shards]):
        print(json.dumps(row), flush=True)
