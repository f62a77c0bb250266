"""hadamard_gram against the same formula in eager torch and torch.compile, in turns, in one run.

    python benchmarks/ops/hadamard_gram.py [--device cuda] [--dry | --results DIR] [--repeats 7] [--tiny]

The floor is half of `h^T h` and of `w w^T` plus `h^T target`, at the speed that torch.mm reaches on `h^T h` alone.
`--tiny` only shows that the script works: one small case, nothing compiled.
"""

import argparse
from pathlib import Path

import torch

from pyprune import ops
from pyprune.bench.results import Results, device_name
from pyprune.bench.timing import interleave
from pyprune.ops.hadamard_gram import flops, reference

# name: (tokens, channels, width, group)
CASES = {
    "neurons 4096x3072 d=768": (4096, 3072, 768, 1),
    "heads=12 4096x768 d=768": (4096, 768, 768, 64),
    "neurons 1248x1536 d=384": (1248, 1536, 384, 1),
}
TINY = {"tiny 16x24 d=8": (16, 24, 8, 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="one small case, nothing compiled")
    parser.add_argument("--results", type=Path, metavar="DIR", help="folder of the CSV file")
    parser.add_argument("--dry", action="store_true", help="print and do not write rows")
    args = parser.parse_args()
    device = args.device
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    results = Results(
        "hadamard_gram",
        sources=("csrc", "triton_kernels", "pyprune/ops", "pyprune/bench", __file__),
        path=args.results and args.results / f"{device_name()}.csv",
    )
    compiled = torch.compile(reference, dynamic=False)
    for name, (tokens, channels, width, group) in (TINY if args.tiny else CASES).items():
        for label, dtype in dtypes.items():
            torch.manual_seed(0)
            shapes = (tokens, channels), (channels, width), (tokens, width)
            h, w, target = (torch.randn(s, device=device).to(dtype) for s in shapes)
            wide = h.float()
            functions = {
                "pyprune": lambda h=h, w=w, t=target, g=group: ops.hadamard_gram(h, w, t, g),
                "eager": lambda h=h, w=w, t=target, g=group: reference(h, w, t, g),
                "compile": lambda h=h, w=w, t=target, g=group: compiled(h, w, t, g),
                "h^T h": lambda h=wide: h.T @ h,
            }
            if args.tiny:
                del functions["compile"]
            timings = interleave(functions, repeats=args.repeats, warmup=2)
            own = timings["pyprune"].median
            work = flops(h, w, target, group)
            product = 2 * tokens * channels * channels
            rate = product / timings["h^T h"].median
            case = f"{name} {label}"
            print(f"\n{case}: {work / 1e9:.1f} GFLOP")
            for provider, timing in timings.items():
                print(f"  {provider:<10}{timing.median * 1e3:>9.2f} ms {timing.median / own:>7.2f} x pyprune")
                results.add(case, provider, "ms", timing.median * 1e3)
                results.add(case, provider, "ratio to pyprune", timing.median / own)
            share = work / rate / own
            print(f"  {share:.0%} of the {rate / 1e9:.0f} GFLOP/s of h^T h; at that rate {work / rate * 1e3:.2f} ms")
            results.add(case, "pyprune", "share of h^T h FLOP rate", share)
    if not args.dry:
        results.write()


if __name__ == "__main__":
    main()
