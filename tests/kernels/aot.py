"""Compiles the Triton kernels with no GPU and reads the machine code: one JSON line per (kernel, architecture).

    python tests/kernels/aot.py 80 100        every kernel for sm_90, the first of each op for sm_80 and sm_100 too

A program of its own because a process that imported Triton with TRITON_INTERPRET=1 has no compiler.
"""

import importlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

OPS = ("prod_reduce", "hadamard_gram")


def specs() -> dict[str, list[dict]]:
    return {op: importlib.import_module(f"pyprune.triton_kernels.{op}").AOT for op in OPS}


def compile_spec(spec: dict, capability: int) -> bytes:
    """The cubin, with the pointer and stride divisibility that a launch on aligned tensors would find."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = spec["kernel"]
    names = kernel.arg_names
    signature = {n: spec["signature"].get(n, "constexpr") for n in names}
    divisible = {(names.index(n),): [["tt.divisibility", 16]] for n in spec["divisible"]}
    source = ASTSource(fn=kernel, signature=signature, constexprs=spec["constexprs"], attrs=divisible)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=spec["options"]).asm["cubin"]


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
    others = [int(argument) for argument in sys.argv[1:]]
    for op_specs in specs().values():
        for spec in op_specs:
            for capability in (90, *(others if spec is op_specs[0] else ())):
                row = {"name": spec["name"], "sm": capability, **inspect(compile_spec(spec, capability))}
                print(json.dumps(row), flush=True)
