"""rearrange against the published loop, O(samples * n) a step, in turns, in one run.

    python benchmarks/ops/rearrange.py [--device cuda] [--dry | --results DIR] [--repeats 5] [--tiny]

`loop` is the exchange alone, with K = g^T g computed; `K` is that product. Both run on the CPU wherever g lies.
`--tiny` only shows that the script works: one small case.
"""

import argparse
from pathlib import Path

import torch

from pyprune import ops
from pyprune.bench.results import Results, device_name
from pyprune.bench.timing import interleave
from pyprune.ops import _native
from pyprune.ops.rearrange import reference

# name: (samples, units, kept, whether the published loop is timed too)
CASES = {
    "64x1536 keep=768": (64, 1536, 768, True),
    "64x3072 keep=1536": (64, 3072, 1536, True),
    "2048x3072 keep=1536": (2048, 3072, 1536, False),
}
TINY = {"tiny 8x40 keep=20": (8, 40, 20, True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="one small case")
    parser.add_argument("--results", type=Path, metavar="DIR", help="folder of the CSV file")
    parser.add_argument("--dry", action="store_true", help="print and do not write rows")
    args = parser.parse_args()
    results = Results(
        "rearrange",
        sources=("csrc", "pyprune/ops", "pyprune/bench", __file__),
        path=args.results and args.results / f"{device_name()}.csv",
    )
    missing = _native.missing("cpp")
    if missing:
        raise SystemExit(f"rearrange: {missing}")
    exchange = _native.op("cpp", "rearrange")
    for case, (samples, units, keep, slow) in (TINY if args.tiny else CASES).items():
        g = torch.randn(samples, units, generator=torch.Generator().manual_seed(0)).to(args.device)
        wide = g.to("cpu", torch.float64)
        gram = wide.T @ wide
        order = gram.diagonal().argsort(stable=True)
        dots = wide.T @ wide[:, order[: units - keep]].sum(1)
        functions = {
            "pyprune": lambda g=g, k=keep: ops.rearrange(g, k),
            "loop": lambda gram=gram, order=order, dots=dots, k=keep: exchange(gram, order, dots, k),
            "K": lambda wide=wide: wide.T @ wide,
        }
        if slow:
            functions["published"] = lambda g=g, k=keep: reference(g, k)
            assert torch.equal(ops.rearrange(g, keep), reference(g, keep))
        timings = interleave(functions, repeats=args.repeats, warmup=1)
        own = timings["pyprune"].median
        print(f"\n{case}")
        for provider, timing in timings.items():
            print(f"  {provider:<10}{timing.median * 1e3:>9.2f} ms {timing.median / own:>7.2f} x pyprune")
            results.add(case, provider, "ms", timing.median * 1e3)
            results.add(case, provider, "ratio to pyprune", timing.median / own)
    if not args.dry:
        results.write()


if __name__ == "__main__":
    main()
