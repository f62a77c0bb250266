"""Builds, checks and measures pyprune on this machine's GPU, from a bare checkout, in one command of a few minutes.

    python3 -m benchmarks.gpu_check [--model DIR] [--only ops,main] [--no-build] [--dry]

Sections, each in processes of its own:

- `build`     both halves of the extension, installed into a scratch folder (or, with --no-build, the checkout's own)
- `compile`   all Triton kernels are compiled, in parallel
- `ops`       every op and backend against float64; gradients; the same bits again and in other batches
- `graph`     kernels replayed from a CUDA graph
- `bench`     every op against its peers, as `pyprune bench` does
- `sanitizer` compute-sanitizer over every kernel: memcheck, racecheck, initcheck
- `main`      `pyprune prune` and `verify` in fp32, bf16 and fp16, on DIR or on a random model of BERT-base's shape
- `costs`     scoring passes and retraining steps against published and plain ones (benchmarks/e2e)

Rows go to benchmarks/results/<device>.csv, and a copy of that file to $OUT if it is set. The exit code is 0 when
nothing failed, 1 when something did, 2 when nothing could be tried. `--dry` goes the same way on a CPU, with tiny
shapes and without rows.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path
from time import monotonic, time

from benchmarks.gpu.install import ROOT, environment, install, prebuilt
from benchmarks.gpu.record import Check, Settings
from benchmarks.gpu.supervise import Section, run_section

# In the order of what a run that is cut short should have done.
SECTIONS = (
    Section("compile", "benchmarks.gpu.precompile", 100),
    Section("ops", "benchmarks.gpu.ops", 180),
    Section("graph", "benchmarks.gpu.graph", 60),
    Section("bench", "benchmarks.gpu.bench", 180),
    Section("sanitizer", "benchmarks.gpu.sanitizer", 110),
    Section("main", "benchmarks.gpu.main_job", 150),
    Section("costs", "benchmarks.gpu.costs", 150),
)
LIMIT_S = 525

Report = dict[str, tuple[list[Check], float]]


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    started, clock = time(), monotonic()
    if importlib.util.find_spec("torch") is None:
        print(f"gpu-check: {sys.executable} has no torch; give make another one: PYTHON=...", file=sys.stderr)
        return 2
    import torch

    if not args.dry and not torch.cuda.is_available():
        print(f"gpu-check: torch {torch.__version__} finds no CUDA device; --dry runs on the CPU", file=sys.stderr)
        return 2
    if not args.dry:
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", architecture(*torch.cuda.get_device_capability()))
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, Python {sys.version.split()[0]}", flush=True)
    results = args.results or (None if args.dry else ROOT / "benchmarks" / "results")
    with tempfile.TemporaryDirectory(prefix="pyprune-gpu-check-", ignore_cleanup_errors=True) as folder:
        report = run(args, Path(folder), results, clock + LIMIT_S)
    print(summary(report, monotonic() - clock))
    if results is not None and os.environ.get("OUT"):
        for table in results.glob("*.csv"):
            if table.stat().st_mtime >= started:
                shutil.copy2(table, os.environ["OUT"])
    return int(any(check.status == "failed" for checks, _ in report.values() for check in checks))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    names = [section.name for section in SECTIONS]

    def sections(text: str) -> list[str]:
        unknown = set(text.split(",")) - set(names)
        if unknown:
            raise argparse.ArgumentTypeError(f"no section {', '.join(sorted(unknown))}; there are {', '.join(names)}")
        return text.split(",")

    def folder(text: str) -> Path:
        return Path(text).resolve()

    parser = argparse.ArgumentParser(
        prog="gpu-check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=folder, metavar="DIR", help="model of the main job (default: a random one)")
    parser.add_argument("--only", type=sections, default=names, metavar="SECTIONS", help="separated by commas")
    parser.add_argument("--no-build", action="store_true", help="take the libraries that lie in pyprune/")
    parser.add_argument("--results", type=folder, metavar="DIR", help="folder of the CSV file")
    parser.add_argument("--dry", action="store_true", help="on the CPU, tiny; rows only with --results")
    args = parser.parse_args(arguments)
    if args.model is not None and not (args.model / "config.json").is_file():
        parser.error(f"--model {args.model}: there is no config.json")
    return args


def architecture(major: int, minor: int) -> str:
    """What to compile for: this device alone, which saves two thirds of the build."""
    return f"{major}.{minor}{'a' if (major, minor) == (9, 0) else ''}"


def run(args: argparse.Namespace, scratch: Path, results: Path | None, deadline: float) -> Report:
    site = scratch / "site"
    site.mkdir()
    worker_environment = environment(scratch, site, args.dry)
    report: Report = {}

    start = monotonic()
    heading("build")
    if args.no_build:
        checks = prebuilt(site, needs_cuda=not args.dry)
    else:
        checks = install(site, ("cpu",) if args.dry else ("cuda", "cpu"), worker_environment)
    print(*checks, sep="\n", flush=True)
    report["build"] = checks, monotonic() - start
    # Beside the package, so that no section needs the checkout on its path: its pyprune has no kernels.
    (site / "benchmarks").symlink_to(ROOT / "benchmarks")

    settings = Settings(
        device="cpu" if args.dry else "cuda",
        tiny=args.dry,
        scratch=str(scratch),
        results=None if results is None else str(results),
        model=None if args.model is None else str(args.model),
    )
    for section in SECTIONS:
        if section.name not in args.only:
            continue
        start = monotonic()
        heading(section.name)
        left = deadline - start
        if left <= 0:
            report[section.name] = [Check(section.name, "skipped", f"all {LIMIT_S} s are over")], 0.0
            continue
        # Alone, a section may take the time of all.
        limited = Section(section.name, section.module, left if len(args.only) == 1 else min(section.limit_s, left))
        worker = site / "benchmarks" / "gpu" / "worker.py"
        report[section.name] = run_section(limited, settings, worker, worker_environment), monotonic() - start
    return report


def heading(name: str) -> None:
    print(f"\n== {name}", flush=True)


def summary(report: Report, seconds: float) -> str:
    """One line a section, then every check that failed and every reason for a skip."""
    lines = ["", f"{'section':<12}{'passed':>8}{'failed':>8}{'skipped':>9}{'seconds':>9}"]
    for section, (checks, took) in report.items():
        counts = [sum(check.status == status for check in checks) for status in ("passed", "failed", "skipped")]
        lines.append(f"{section:<12}{counts[0]:>8}{counts[1]:>8}{counts[2]:>9}{took:>9.1f}")
    lines.append(f"{'':<12}{'':>8}{'':>8}{'all':>9}{seconds:>9.1f}")
    for status in ("skipped", "failed"):
        found = [(section, c) for section, (checks, _) in report.items() for c in checks if c.status == status]
        lines += [f"{status.upper()} {section}: {c.name}: {c.detail}" for section, c in found]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
