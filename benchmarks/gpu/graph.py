"""Section `graph`: kernels captured in a CUDA graph give, replayed on new values, the bits of a plain call."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from benchmarks.gpu.pairs import pairs, tally
from benchmarks.gpu.record import Check, Settings
from pyprune.ops import Candidate, Op
from pyprune.testing import numerics
from pyprune.testing.cases import cases, leaves, tensors
from pyprune.testing.ladder import call, far

KERNELS = ("cuda", "triton")


def units(settings: Settings) -> dict[str, Callable[[], Iterator[Check]]]:
    return pairs(settings, check_pair)


def check_pair(op: Op, candidate: Candidate, device: str, settings: Settings) -> Iterator[Check]:
    name = f"{op.name} {candidate.backend}"
    if candidate.backend not in KERNELS:
        yield Check(name, "skipped", f"only {' and '.join(KERNELS)} kernels are captured")
        return
    yield tally(f"{name}: replay", candidate, cases(op, device, tiny=True), lambda args: replays(op, candidate, args))


def replays(op: Op, candidate: Candidate, args: tuple) -> None:
    static = tensors(args, lambda t: t.detach() if far(t) else t.detach().clone())
    # Kernels are compiled and workspaces made before the capture, on a stream of their own.
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call(op, candidate, static)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call(op, candidate, static)
    for scale in (0.5, -3.0):
        for tensor in leaves(static):
            if tensor.is_floating_point() and not far(tensor):
                tensor.mul_(scale)
        for output in captured:
            output.fill_(torch.nan if output.is_floating_point() else -1)
        graph.replay()
        for found, expected in zip(captured, call(op, candidate, static), strict=True):
            numerics.exact(found, expected)
