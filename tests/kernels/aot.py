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
import subprocess
import sys
import tempfile
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


def inspect(cubin: bytes) -> dict:
    """Registers, stack, local-memory accesses (spills) and instruction names, from Triton's own cuobjdump."""
    import triton.backends.nvidia

    tool = Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage, sass = (
            subprocess.run([tool, flag, file.name], capture_output=True, text=True, check=True).stdout
            for flag in ("-res-usage", "-sass")
        )
    instructions = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", sass, re.MULTILINE)
    return {
        "registers": int(re.search(r"REG:(\d+)", usage).group(1)),
        "stack": int(re.search(r"STACK:(\d+)", usage).group(1)),
        "spills": sum(i.startswith(("LDL", "STL")) for i in instructions),
        "instructions": sorted(set(instructions)),
    }


if __name__ == "__main__":
    exhaustive = "--exhaustive" in sys.argv
    shard, shards = (int(argument) for argument in sys.argv[1 + exhaustive :] or (0, 1))
    for spec, capability in jobs(exhaustive)[shard::shards]:
        compiled = compile_spec(spec, capability)
        row = {
            "name": spec["name"],
            "sm": capability,
            "shared": compiled.metadata.shared,
            "narrow_products": narrow_products(compiled.asm["ttir"]),
            **inspect(compiled.asm["cubin"]),
        }
        print(json.dumps(row), flush=True)
