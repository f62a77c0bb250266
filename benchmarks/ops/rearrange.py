"""rearrange against the published loop, O(samples * n) a step, in turns, in one run.

    python benchmarks/ops/rearrange.py [--dry] [--repeats 5]

`loop` is the exchange alone, with K = g^T g computed; `K` is that product.
"""

import argparse

import torch

from pyprune import ops
from pyprune.bench.results import Results
from pyprune.bench.timing import interleave
from pyprune.ops import _native
from pyprune.ops.rearrange import reference

# name: (samples, units, kept, whether the published loop is timed too)
CASES = {
    "64x1536 keep=768": (64, 1536, 768, True),
    "64x3072 keep=1536": (64, 3072, 1536, True),
    "2048x3072 keep=1536": (2048, 3072, 1536, False),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dry", action="store_true", help="print and do not write rows")
    args = parser.parse_args()
    results = Results("rearrange", sources=("csrc", "pyprune/ops", "pyprune/bench", __file__))
    exchange = _native.op("cpp", "rearrange")
    for case, (samples, units, keep, slow) in CASES.items():
        g = torch.randn(samples, units, generator=torch.Generator().manual_seed(0))
        wide = g.double()
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
