"""Section `ops`: every op and backend against float64, its gradients, and the same bits again and in other batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from time import perf_counter

import torch

from benchmarks.gpu.pairs import pairs, tally
from benchmarks.gpu.record import Check, Settings
from pyprune.ops import Candidate, Op
from pyprune.testing import ladder
from pyprune.testing.cases import batches, cases, leaves


def units(settings: Settings) -> dict[str, Callable[[], Iterator[Check]]]:
    return pairs(settings, check_pair)


def check_pair(op: Op, candidate: Candidate, device: str, settings: Settings) -> Iterator[Check]:
    name = f"{op.name} {candidate.backend}"
    # Large shapes are for the kernels of this device: on a CPU, and for the reference, they only take time.
    own_device = torch.device(device).type == torch.device(settings.device).type
    tiny = settings.tiny or candidate.backend == "torch" or not own_device
    every = partial(cases, op, device, tiny)

    def over(what: str, check: Callable, some) -> Check:
        return tally(f"{name}: {what}", candidate, some, lambda args: check(op, candidate, args))

    yield over("float64", ladder.accurate, every())
    small = cases(op, device, tiny=True)
    differentiable = [case for case in small if any(t.requires_grad for t in leaves(case[1]))]
    if differentiable:
        yield over("gradients", ladder.true_gradients, differentiable)
    if candidate.backend != "torch":  # the reference promises none of these
        yield over("same bits again", ladder.repeatable, every())
        yield over("inside its buffers", ladder.inside_its_buffers, cases(op, device, tiny=True))
        if batches(op, device):
            yield same_in_every_batch(f"{name}: same bits in any batch", op, candidate, device)


def same_in_every_batch(name: str, op: Op, candidate: Candidate, device: str) -> Check:
    start = perf_counter()
    try:
        detail, status = f"{ladder.same_in_every_batch(op, candidate, device)} other ways", "passed"
    except AssertionError as error:
        detail, status = str(error), "failed"
    return Check(name, status, detail, perf_counter() - start)
