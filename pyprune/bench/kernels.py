"""Every op against its peers, in turns, in one run: what `pyprune bench` and `make gpu-check` measure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from pyprune import ops
from pyprune.bench.ceilings import Ceilings, ceilings
from pyprune.bench.ops import Case, cases
from pyprune.bench.results import Results
from pyprune.bench.timing import Timing, interleave
from pyprune.core.errors import InputError
from pyprune.ops import OPS, Op
from pyprune.ops._dispatch import Candidate, device_of, tensors

OWN = "pyprune"
COMPILED = "compile"
# Sets of inputs that are rotated on a GPU together exceed its L2 cache (50 MB on an H100) twice, up to so many sets.
_COLD_BYTES, _MOST_SETS = 100 * 2**20, 16
# Rounds a case: as many as fit, within these limits.
_SECONDS, _FEWEST, _MOST = 1.5, 5, 50


@dataclass(frozen=True)
class Measured:
    """One case of one op: seconds of every provider, and the floor that the device's ceilings give.

    `timings` holds `pyprune` (the backend that is chosen by itself), `pyprune <backend>` for the others that serve the
    call, the peers, and `compile`; `yardsticks` those that bound the time and do not compete.
    """

    op: str
    shape: str
    dtype: str
    backend: str
    bytes_moved: int
    flops: int
    ceilings: Ceilings
    timings: Mapping[str, Timing]
    yardsticks: frozenset[str] = field(default=frozenset())

    @property
    def floor_s(self) -> float:
        return self.ceilings.seconds(self.bytes_moved, self.flops)

    @property
    def memory_bound(self) -> bool:
        """Whether the bytes and not the FLOPs set the floor."""
        return self.bytes_moved / self.ceilings.bytes_s >= self.flops / self.ceilings.flops_s

    @property
    def winner(self) -> str:
        """The fastest provider by the median, yardsticks apart."""
        return min(self.timings.keys() - self.yardsticks, key=lambda name: self.timings[name].median)

    def rate(self, provider: str) -> tuple[str, float]:
        """(`GB/s` or `TFLOP/s`, the provider's rate at the job's floor of bytes or FLOPs)."""
        seconds = self.timings[provider].median
        if self.memory_bound:
            return "GB/s", self.bytes_moved / seconds / 1e9
        return "TFLOP/s", self.flops / seconds / 1e12

    def share(self, provider: str) -> float:
        """Floor over time: 1 is as fast as the ceilings allow (more is possible where data stays in caches)."""
        return self.floor_s / self.timings[provider].median


def chosen_ops(names: Sequence[str]) -> list[Op]:
    """The ops of these names, all if there are none; InputError for an unknown one."""
    for name in names:
        if name not in OPS:
            raise InputError(f"bench: {name!r} is no op; choose from {', '.join(OPS)}")
    return [OPS[name] for name in names or OPS]


def measure(
    op: Op,
    device: str = "cpu",
    providers: Sequence[str] = (),
    repeats: int | None = None,
    tiny: bool = False,
) -> Iterator[Measured]:
    """Time the cases of one op; inputs are rotated through more than the L2 cache on a GPU.

    providers: only these (`pyprune` is always there); all if empty. repeats: rounds a case instead of as many as fit in
    1.5 seconds (5 at least). tiny: one small case, nothing compiled.
    """
    for case in cases(op, device, tiny):
        yield measure_case(op, case, device, providers, repeats, tiny)


def measure_case(
    op: Op,
    case: Case,
    device: str = "cpu",
    providers: Sequence[str] = (),
    repeats: int | None = None,
    tiny: bool = False,
) -> Measured:
    """One of the cases, see `measure`."""
    torch.manual_seed(0)
    if not tiny:
        # A function compiled for eight shapes is not compiled for a ninth: its time would be eager's.
        torch.compiler.reset()
    inputs = _inputs(case, device)
    arguments = inputs[0]
    moved = op.bytes_moved(*arguments) if case.bytes_moved is None else case.bytes_moved
    work = op.flops(*arguments) if case.flops is None else case.flops
    candidate = op.select(*arguments)
    functions = {OWN: op.overload, **_other_backends(op, candidate, arguments), **case.peers}
    if case.compiled and "eager" in case.peers and not tiny:
        functions[COMPILED] = torch.compile(case.peers["eager"], dynamic=False)
    functions |= case.yardsticks
    if providers:
        functions = {name: f for name, f in functions.items() if name == OWN or name in providers}
    rounds = repeats or _rounds(functions, inputs, device)
    timings = interleave(functions, repeats=rounds, warmup=1 if tiny else 3, inputs=inputs, device=device)
    yardsticks = frozenset(case.yardsticks.keys() & functions.keys())
    limits = ceilings(device, case.dtype, tiny=tiny)
    return Measured(op.name, case.shape, case.dtype, candidate.backend, moved, work, limits, timings, yardsticks)


def unknown_providers(ops_: Sequence[Op], device: str, providers: Sequence[str]) -> list[str]:
    """Those that no case of these ops knows."""
    known = {OWN, COMPILED}
    for op in ops_:
        known |= {f"{OWN} {c.backend}" for c in op.candidates}
        known |= {name for case in cases(op, device) for name in (*case.peers, *case.yardsticks)}
    return [name for name in providers if name not in known]


def record(results: Results, found: Measured) -> None:
    """Rows of one case: milliseconds, rate, ratio to pyprune and share of the ceiling of every provider."""
    case = f"{found.shape} {found.dtype}"
    own = found.timings[OWN].median
    for provider, timing in found.timings.items():
        unit, rate = found.rate(provider)
        results.add(case, provider, "ms", timing.median * 1e3)
        results.add(case, provider, unit, rate)
        results.add(case, provider, "ratio to pyprune", timing.median / own)
        results.add(case, provider, "share of ceiling", found.share(provider))
    results.add(case, "ceiling", "GB/s", found.ceilings.bytes_s / 1e9)
    results.add(case, "ceiling", "TFLOP/s", found.ceilings.flops_s / 1e12)


def _inputs(case: Case, device: str) -> list[tuple]:
    first = case.arguments()
    if torch.device(device).type != "cuda":
        return [first]
    size = sum(t.numel() * t.element_size() for t in tensors(first))
    return [first, *(case.arguments() for _ in range(min(_MOST_SETS, _COLD_BYTES // max(size, 1) + 1)))]


def _other_backends(op: Op, chosen: Candidate, arguments: tuple) -> dict[str, Callable]:
    """The op on every kernel that could serve these arguments too, the torch reference apart."""

    def on(backend: str) -> Callable:
        def call(*args):
            with ops.backend(f"{op.name}={backend}"):
                return op.overload(*args)

        return call

    device = device_of(arguments).type
    able = [c for c in op.candidates if device in c.devices and c.available() is None and c.supports(*arguments)[0]]
    return {f"{OWN} {c.backend}": on(c.backend) for c in able if c.backend not in ("torch", chosen.backend)}


def _rounds(functions: Mapping[str, Callable], inputs: Sequence[tuple], device: str) -> int:
    """Rounds that fit in the time of a case. Compilation and first touches happen here."""
    interleave(functions, repeats=1, warmup=0, inputs=inputs, device=device)
    once = interleave(functions, repeats=1, warmup=0, inputs=inputs, device=device)
    return min(_MOST, max(_FEWEST, int(_SECONDS / sum(t.median for t in once.values()))))
