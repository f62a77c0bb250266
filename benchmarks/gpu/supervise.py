"""Runs a section in processes of its own, and starts another one behind the unit that a crash or a timeout took."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic

from benchmarks.gpu.group import group
from benchmarks.gpu.record import Check, Settings


@dataclass(frozen=True)
class Section:
    """name: what `--only` says; module: where its `units` are; limit_s: seconds for the whole section."""

    name: str
    module: str
    limit_s: float


def run_section(section: Section, settings: Settings, worker: Path, environment: Mapping[str, str]) -> list[Check]:
    """The checks of all units. A unit that did not finish has failed; those after a timeout are skipped."""
    end = monotonic() + section.limit_s
    checks: list[Check] = []
    done: list[str] = []
    for attempt in range(1_000):
        base = Path(settings.scratch) / f"{section.name}-{attempt}"
        log, errors = base.with_suffix(".jsonl"), base.with_suffix(".stderr")
        start = monotonic()
        order = {"module": section.module, "log": str(log), "done": done, "settings": asdict(settings)}
        order["seconds"] = end - start
        ending = _launch([sys.executable, str(worker), json.dumps(order)], environment, errors, end - monotonic())
        units, running, found, finished = _read(log)
        checks += found
        done += finished
        victim = running or (section.name if ending and (units is None or set(units) == set(done)) else None)
        if victim is not None:
            checks.append(Check(victim, "failed", f"{ending}{_tail(errors)}", monotonic() - start))
            print(checks[-1], flush=True)
            done.append(victim)
        left = [unit for unit in units or () if unit not in done]
        if left and monotonic() >= end:
            checks += [Check(unit, "skipped", f"the section's {section.limit_s:.0f} s are over") for unit in left]
            return checks
        if not left:
            return checks
    raise AssertionError(f"section {section.name} does not end")


def _launch(command: list[str], environment: Mapping[str, str], errors: Path, seconds: float) -> str:
    """Run a worker to its end; how it ended, "" for well."""
    with errors.open("w", encoding="utf-8") as stderr, group(command, environment, stderr=stderr) as process:
        try:
            code = process.wait(max(seconds, 0.0))
        except subprocess.TimeoutExpired:
            return f"not finished when the section's time was over ({max(seconds, 0.0):.0f} s for this process)"
    if code < 0:
        return f"the process was ended by {signal.Signals(-code).name}"
    return f"the process ended with exit code {code}" if code else ""


def _read(log: Path) -> tuple[list[str] | None, str | None, list[Check], list[str]]:
    """(units, the one that did not finish, checks, finished units) of one worker."""
    units, running, checks, finished = None, None, [], []
    lines = log.read_text(encoding="utf-8").splitlines(keepends=True) if log.exists() else []
    for line in lines:
        if not line.endswith("\n"):  # cut off by the crash
            break
        event = json.loads(line)
        units = event.get("units", units)
        running = event.get("started", running)
        if "check" in event:
            checks.append(Check(**event["check"]))
        if "finished" in event:
            finished.append(event["finished"])
            running = None
    return units, running, checks, finished


def _tail(errors: Path) -> str:
    lines = [line.strip() for line in errors.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return f"; {lines[-1]}" if lines else ""
