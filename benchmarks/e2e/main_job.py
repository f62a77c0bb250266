"""The main job measured: MiniLM at 60 % and 40 % of its FLOPs, beside the published pipeline stage by stage.

    python benchmarks/e2e/main_job.py

One row a figure: speed-up (dense / pruned, medians in turns), held-out fidelity of every pipeline, seconds.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import pyprune
from pyprune.bench.results import Results
from pyprune.report.prune import compare_stages, measure, table

MODEL = "sentence-transformers/all-MiniLM-L6-v2"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--flops", nargs="+", default=["60%", "40%"], help="budgets")
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dry", action="store_true", help="print, do not write results")
    args = parser.parse_args()
    results = Results("main_job")
    for budget in args.flops:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "pruned"
            wanted = {"out": out, "samples": args.samples, "device": args.device}
            result = pyprune.prune(args.model, {"flops": budget}, **wanted)
            seconds = sum(stage.seconds for stage in result.stages.log)
            report = measure(result, out, compare_stages(result, seed=0))
        print(f"\n{args.model} at {budget}\n{table(report)}")
        case = f"flops={budget}"
        results.add(case, "this checkpoint", "seconds to prune", seconds)
        for x in report["latency_ms"]:
            results.add(case, "this checkpoint", f"speed-up {x['batch']}x{x['length']}", x["speedup"])
        for name, values in report["fidelity"].items():
            for metric, value in values.items():
                results.add(case, name, metric, value)
        for scope in ("blocks", "model"):
            for resource in ("flops", "params"):
                dense, pruned = report[scope][resource]
                results.add(case, "this checkpoint", f"{resource} kept, {scope}", pruned / dense)
    if not args.dry:
        results.write()


if __name__ == "__main__":
    main()
