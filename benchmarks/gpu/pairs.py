"""Every op with every backend: where the two can meet on this machine, and one check over many cases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from time import perf_counter

import torch

from benchmarks.gpu.record import Check, Settings
from pyprune.ops import OPS, Candidate, Op
from pyprune.testing.cases import Case

PairCheck = Callable[[Op, Candidate, str, Settings], Iterator[Check]]


def pairs(settings: Settings, check: PairCheck) -> dict[str, Callable[[], Iterator[Check]]]:
    """One unit for each op and backend: `check` on a device that the backend serves, or the reason why not."""
    return {
        f"{op.name} {candidate.backend}": partial(_run, op, candidate, settings, check)
        for op in OPS.values()
        for candidate in op.candidates
    }


def _run(op: Op, candidate: Candidate, settings: Settings, check: PairCheck) -> Iterator[Check]:
    name = f"{op.name} {candidate.backend}"
    reason = candidate.available()
    # A kernel for CPUs is checked on a machine with a GPU too: it was built there.
    device = next((d for d in (settings.device, "cpu") if torch.device(d).type in candidate.devices), None)
    if reason is None and device is None:
        reason = f"it serves {' and '.join(candidate.devices)} tensors only"
    if reason is not None:
        yield Check(name, "skipped", reason)
    else:
        yield from check(op, candidate, device, settings)


def tally(name: str, candidate: Candidate, cases: Iterable[Case], compare: Callable[[tuple], None]) -> Check:
    """`compare` on the arguments of every case that the candidate supports. One bad case does not hide the others."""
    start = perf_counter()
    count, failures, declined = 0, [], Counter()
    for case, args in cases:
        supported, reason = candidate.supports(*args)
        if not supported:
            declined[reason] += 1
            continue
        count += 1
        try:
            compare(args)
        except Exception as error:
            kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
            failures.append(f"{case}: {kind}{str(error).strip().splitlines()[0] if str(error) else ''}")
    seconds = perf_counter() - start
    detail = "; ".join([f"{count} cases", *(f"{n} not supported ({reason})" for reason, n in declined.items())])
    if failures:
        return Check(name, "failed", f"{len(failures)} of {detail}: " + " | ".join(failures[:3]), seconds)
    return Check(name, "passed" if count else "skipped", detail, seconds)
