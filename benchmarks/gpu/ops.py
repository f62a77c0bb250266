"""Section `ops`: every op and backend against float64, its gradients, and the same bits again and in other batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from time import perf_counter

import torch
from torch import Tensor

from benchmarks.gpu.cases import BATCHES, cases
from benchmarks.gpu.pairs import as_tuple, call, pairs, tally
from benchmarks.gpu.record import Check, Settings
from pyprune.ops import Candidate, Op
from pyprune.testing import numerics


def units(settings: Settings) -> dict[str, Callable[[], Iterator[Check]]]:
    return pairs(settings, check_pair)


def check_pair(op: Op, candidate: Candidate, device: str, settings: Settings) -> Iterator[Check]:
    name = f"{op.name} {candidate.backend}"
    every = partial(cases, op, device, settings.tiny)
    yield tally(f"{name}: float64", candidate, every(), lambda args: accurate(op, candidate, args))
    small = cases(op, device, tiny=True)
    differentiable = [case for case in small if any(isinstance(a, Tensor) and a.requires_grad for a in case[1])]
    if differentiable:
        yield tally(f"{name}: gradients", candidate, differentiable, lambda args: true_gradients(op, candidate, args))
    if candidate.backend != "torch":  # the reference promises neither
        yield tally(f"{name}: same bits again", candidate, every(), lambda args: repeatable(op, candidate, args))
        if op.name in BATCHES:
            yield same_in_every_batch(f"{name}: same bits in any batch", op, candidate, device)


def accurate(op: Op, candidate: Candidate, args: tuple) -> None:
    """Within the budget of numerics for sums, the same numbers for indices; nothing left unwritten."""
    args = tuple(a.detach() if isinstance(a, Tensor) else a for a in args)
    reference = op.candidates[-1].run
    with numerics.poisoned():
        found = call(op, candidate, args)
    truth, same_dtype = (as_tuple(reference(*some)) for some in (widened(args), args))
    for a, t, s in zip(found, truth, same_dtype, strict=True):
        if a.is_floating_point():
            numerics.budget(a, t, s, numerics.RUNNING_SUM)
        else:
            numerics.exact(a, t)


def true_gradients(op: Op, candidate: Candidate, args: tuple) -> None:
    reference = op.candidates[-1].run
    found = gradients(lambda *given: call(op, candidate, given), args)
    truth, same_dtype = (gradients(reference, some) for some in (widened(args), args))
    for a, t, s in zip(found, truth, same_dtype, strict=True):
        numerics.budget(a, t, s, numerics.RUNNING_SUM)


def gradients(function: Callable, args: tuple) -> tuple[Tensor, ...]:
    """Gradients of a weighted sum of all outputs at every argument that requires one."""
    leaves = [a.detach().requires_grad_(a.requires_grad) if isinstance(a, Tensor) else a for a in args]
    outputs = as_tuple(function(*leaves))
    weights = [torch.linspace(-1, 1, o.numel(), device=o.device, dtype=o.dtype).view_as(o) for o in outputs]
    total = sum((o * w).sum() for o, w in zip(outputs, weights, strict=True))
    return torch.autograd.grad(total, [a for a in leaves if isinstance(a, Tensor) and a.requires_grad])


def repeatable(op: Op, candidate: Candidate, args: tuple) -> None:
    for first, second in zip(call(op, candidate, args), call(op, candidate, args), strict=True):
        numerics.exact(second, first)


def same_in_every_batch(name: str, op: Op, candidate: Candidate, device: str) -> Check:
    start = perf_counter()
    first, *others = [torch.cat([call(op, candidate, args)[0] for args in way]) for way in BATCHES[op.name](device)]
    differing = [i for i, other in enumerate(others, 1) if not torch.equal(first, other)]
    detail = f"other bits in ways {differing} of {len(others)}" if differing else f"{len(others)} other ways"
    return Check(name, "failed" if differing else "passed", detail, perf_counter() - start)


def widened(args: tuple) -> tuple:
    """Floating tensors as float64 leaves."""

    def widen(a):
        if not (isinstance(a, Tensor) and a.is_floating_point()):
            return a
        return a.detach().double().requires_grad_(a.requires_grad)

    return tuple(widen(a) for a in args)
