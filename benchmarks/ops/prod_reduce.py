"""prod_reduce against eager, torch.compile, einsum and the read floor, in turns, in one run.

    python benchmarks/ops/prod_reduce.py [--device cuda] [--dry | --results DIR] [--repeats 40] [--cold] [--tiny]

The floor is `x.sum()` and `y.sum()`: the same bytes read by torch's own reduction. `--cold` rotates four pairs of
inputs, more than the caches hold. Rows go to benchmarks/results/<device>.csv, or to DIR, unless --dry. `--tiny` only
shows that the script works: one small case, nothing compiled.

`pyprune` is the backend that is chosen by itself; a GPU's other kernels stand beside it under their names.
"""

import argparse
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from pyprune import ops
from pyprune.bench.results import Results, device_name
from pyprune.bench.timing import interleave
from pyprune.ops.prod_reduce import OP, bytes_moved

Make = Callable[[], tuple]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
CPU_SHAPES = {"32x128x3072": (32, 128, 3072), "1x4096x3072": (1, 4096, 3072), "1x128x3072": (1, 128, 3072)}
GPU_SHAPES = {"32x128x3072": (32, 128, 3072), "64x197x3072": (64, 197, 3072), "8x2048x14336": (8, 2048, 14336)}
# Token counts of 32 short passages, 39 on average as in natural-language-inference pairs: 1,248 of 4,096 when padded.
# fmt: off
LENGTHS = [15, 18, 20, 22, 24, 25, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36,
           37, 38, 39, 40, 42, 43, 45, 46, 48, 50, 52, 55, 60, 66, 76, 72]
# fmt: on


def cases(device: str, tiny: bool = False) -> Iterator[tuple[str, Make, int, bool]]:
    """(name, maker of one set of arguments, group, ragged)"""
    if tiny:
        yield "tiny 2x64x96 fp32", lambda: pair((2, 64, 96), torch.float32, device), 1, False
        return
    shapes = GPU_SHAPES if device == "cuda" else CPU_SHAPES
    for dtype, (name, shape) in itertools.product(DTYPES, shapes.items()):
        yield f"{name} {dtype}", lambda s=shape, d=dtype: pair(s, DTYPES[d], device), 1, False
    for dtype in DTYPES:
        yield f"32x128x768 heads=12 {dtype}", lambda d=dtype: pair((32, 128, 768), DTYPES[d], device), 64, False
        tokens = sum(LENGTHS)
        yield f"ragged 32 samples {tokens}x3072 {dtype}", lambda d=dtype: ragged(DTYPES[d], device), 1, True


def pair(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> tuple:
    return tuple(torch.randn(shape, device=device).to(dtype) for _ in range(2))


def ragged(dtype: torch.dtype, device: str) -> tuple:
    offsets = torch.tensor([0, *LENGTHS], device=device).cumsum(0)
    return *pair((sum(LENGTHS), 3072), dtype, device), offsets


def providers(samples: int, group: int, is_ragged: bool) -> dict[str, Callable]:
    def floor(x, y, *_):
        return x.sum(), y.sum()

    if is_ragged:
        starts = [0, *itertools.accumulate(LENGTHS)]
        spans = [slice(a, b) for a, b in itertools.pairwise(starts)]
        return {
            "pyprune": lambda x, y, offsets: ops.prod_reduce(x, y, offsets),
            "eager": lambda x, y, _: torch.stack([(x[s] * y[s]).sum(0) for s in spans]),
            "floor": floor,
        }

    def eager(x, y):
        out = (x * y).sum(1)
        return out.unflatten(1, (-1, group)).sum(2) if group > 1 else out

    def einsum(x, y):
        return torch.einsum("btjc,btjc->bj", *(t.unflatten(2, (-1, group)) for t in (x, y)))

    found = {
        "pyprune": lambda x, y: ops.prod_reduce(x, y, None, group),
        "eager": eager,
        "compile": torch.compile(eager, dynamic=False),
        "floor": floor,
    }
    # 200 times slower than the op on a single long sample: left out there.
    return found if samples == 1 else {**found, "einsum": einsum}


def other_kernels(function: Callable, arguments: tuple) -> dict[str, Callable]:
    """`function` on every backend that could serve the op's `arguments` too, the torch reference apart."""

    def on(backend: str) -> Callable:
        def call(*args):
            with ops.backend(f"prod_reduce={backend}"):
                return function(*args)

        return call

    passed_over = {"torch", OP.select(*arguments).backend}
    able = [c for c in OP.candidates if arguments[0].device.type in c.devices and c.available() is None]
    names = [c.backend for c in able if c.backend not in passed_over and c.supports(*arguments)[0]]
    return {f"pyprune {name}": on(name) for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--cold", action="store_true", help="rotate inputs larger than the caches")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="one small case, nothing compiled")
    parser.add_argument("--results", type=Path, metavar="DIR", help="folder of the CSV file")
    parser.add_argument("--dry", action="store_true", help="print and do not write rows")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    args = parser.parse_args()
    results = Results(
        "prod_reduce",
        sources=("csrc", "triton_kernels", "pyprune/ops", "pyprune/bench", __file__),
        path=args.results and args.results / f"{device_name()}.csv",
    )
    for name, make, group, is_ragged in cases(args.device, args.tiny):
        if args.only not in name:
            continue
        torch.manual_seed(0)
        inputs = [make() for _ in range(4 if args.cold else 1)]
        case = f"{name} cold" if args.cold else name
        functions = providers(len(inputs[0][0]), group, is_ragged)
        arguments = *inputs[0][:2], inputs[0][2] if is_ragged else None, group, 0
        functions |= other_kernels(functions["pyprune"], arguments)
        if args.tiny:
            del functions["compile"]
        timings = interleave(functions, repeats=args.repeats, warmup=5, inputs=inputs)
        own = timings["pyprune"].median
        size = bytes_moved(*arguments)
        print(f"\n{case}: {size / 1e6:.1f} MB")
        for provider, timing in timings.items():
            rate = size / timing.median / 1e9
            ratio = timing.median / own
            print(f"  {provider:<16}{timing.median * 1e3:>9.3f} ms {rate:>8.1f} GB/s {ratio:>7.2f} x pyprune")
            results.add(case, provider, "ms", timing.median * 1e3)
            results.add(case, provider, "GB/s", rate)
            results.add(case, provider, "ratio to pyprune", ratio)
    if not args.dry:
        results.write()


if __name__ == "__main__":
    main()
