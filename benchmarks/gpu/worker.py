"""Runs the units of one section and writes down what happens, line by line, so that a crash loses one unit at most.

Started by supervise.py as `worker.py JSON` with module, log, done (units to leave out), settings and seconds. If the
module has a `LEAST_S`, no unit is begun with fewer seconds left: it is skipped, and not ended in the middle.
"""

from __future__ import annotations

import importlib
import json
import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from time import monotonic, perf_counter

import torch

import pyprune
from benchmarks.gpu.record import Check, Settings


def main() -> None:
    order = json.loads(sys.argv[1])
    settings = Settings(**order["settings"])
    home = Path(pyprune.__file__).resolve()
    if Path(settings.scratch).resolve() not in home.parents:
        raise SystemExit(f"pyprune comes from {home.parent}, not from the folder that it was installed in")
    with Path(order["log"]).open("w", encoding="utf-8", buffering=1) as log:

        def tell(**event) -> None:
            log.write(json.dumps(event) + "\n")

        end = monotonic() + order["seconds"]
        module = importlib.import_module(order["module"])
        least, units = getattr(module, "LEAST_S", 0), module.units(settings)
        tell(units=list(units))
        for name, run in units.items():
            if name in order["done"]:
                continue
            tell(started=name)
            if least and end - monotonic() < least:
                tell(check=asdict(Check(name, "skipped", "the section's time is over")))
                tell(finished=name)
                continue
            start = perf_counter()
            try:
                for check in run():
                    print(check, flush=True)
                    tell(check=asdict(check))
            except (Exception, SystemExit) as error:
                traceback.print_exc()
                check = Check(name, "failed", reason(error), perf_counter() - start)
                print(check, flush=True)
                tell(check=asdict(check))
            tell(finished=name)
            if torch.device(settings.device).type == "cuda":
                # After an illegal access every further call in this process fails: this one ends it.
                torch.cuda.synchronize()


def reason(error: BaseException) -> str:
    first = str(error).strip().splitlines()[0] if str(error).strip() else ""
    return f"{type(error).__name__}: {first}"


if __name__ == "__main__":
    main()
