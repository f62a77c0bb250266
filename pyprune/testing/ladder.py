"""What every op owes on every backend, whatever it computes: checks that tests and `make gpu-check` run on all cases.

Each takes the op, one of its candidates and one set of arguments, and raises AssertionError.
"""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pyprune import ops
from pyprune.ops import Candidate, Op
from pyprune.testing import numerics
from pyprune.testing.cases import batches, leaves, per_sample, tensors

# Elements before and behind a guarded tensor: more than the widest tile of a kernel's row.
GUARD = 4096
_CANARY = {torch.bool: True}
_ALLOCATIONS = tuple(
    getattr(torch.ops.aten, name)
    for name in (
        "empty",
        "new_empty",
        "empty_like",
        "new_zeros",
        "zeros",
        "zeros_like",
        "empty_strided",
        "new_full",
        "arange",
    )
)


def mutated(op: Op) -> list[int]:
    """Positions of the arguments that the op changes in place."""
    arguments = op.overload._schema.arguments
    return [i for i, a in enumerate(arguments) if a.alias_info is not None and a.alias_info.is_write]


def results(op: Op, run: Callable, args: tuple) -> list[Tensor]:
    """Everything `run(*args)` gives: what it returns, then what it changed in place. `args` stay as they are."""
    fresh = list(args)
    for i in mutated(op):
        fresh[i] = tensors(args[i], lambda t: t.detach().clone())
    return leaves((run(*fresh), [fresh[i] for i in mutated(op)]))


def call(op: Op, candidate: Candidate, args: tuple) -> list[Tensor]:
    """`results` of the public op on this backend and no other."""
    with ops.backend(f"{op.name}={candidate.backend}"):
        return results(op, op.overload, args)


def accurate(op: Op, candidate: Candidate, args: tuple) -> None:
    """Within the budget of numerics for sums, the same numbers for indices; nothing left unwritten."""
    args = tensors(args, Tensor.detach)
    with numerics.poisoned():
        found = call(op, candidate, args)
    agrees(op, found, args)


def agrees(op: Op, found: list[Tensor], args: tuple) -> None:
    """`found` against the reference in float64, within the budget that the reference needs in the dtypes of `args`."""
    reference = op.candidates[-1].run
    truth, same_dtype = (results(op, reference, some) for some in (widened(args), args))
    for a, t, s in zip(found, truth, same_dtype, strict=True):
        if a.is_floating_point():
            assert a.dtype == s.dtype, f"{a.dtype} where the reference gives {s.dtype}"
            numerics.budget(a, t, s, allowance(op, a.is_cuda))
        else:
            numerics.exact(a, t)


def allowance(op: Op, on_cuda: bool) -> float:
    """How many times torch's own error is allowed."""
    if not on_cuda or all(c.backend != "triton" for c in op.candidates):
        return numerics.RUNNING_SUM
    kernels = importlib.import_module(f"pyprune.triton_kernels.{op.name}")
    return numerics.TENSOR_CORE_SUM if kernels.DOT else numerics.RUNNING_SUM


def true_gradients(op: Op, candidate: Candidate, args: tuple) -> None:
    """Gradients through the public op against those through the reference in float64."""
    reference = op.candidates[-1].run

    def through(backend: str) -> Callable:
        def run(*given):
            with ops.backend(f"{op.name}={backend}"):
                return op.overload(*given)

        return run

    found = gradients(through(candidate.backend), args)
    truth, same_dtype = (gradients(reference, some) for some in (widened(args), args))
    for a, t, s in zip(found, truth, same_dtype, strict=True):
        numerics.budget(a, t, s, numerics.RUNNING_SUM)


def gradients(function: Callable, args: tuple) -> tuple[Tensor, ...]:
    """Gradients of a weighted sum of all outputs that have one, at every argument that requires one."""
    args = tensors(args, lambda t: t.detach().requires_grad_(t.requires_grad))
    outputs = [o for o in leaves(function(*args)) if o.requires_grad]
    weights = [torch.linspace(-1, 1, o.numel(), device=o.device, dtype=o.dtype).view_as(o) for o in outputs]
    total = sum((o * w).sum() for o, w in zip(outputs, weights, strict=True))
    return torch.autograd.grad(total, [t for t in leaves(args) if t.requires_grad])


def repeatable(op: Op, candidate: Candidate, args: tuple) -> None:
    """The same bits again."""
    for first, second in zip(call(op, candidate, args), call(op, candidate, args), strict=True):
        numerics.exact(second, first)


def same_in_every_batch(op: Op, candidate: Candidate, device: str) -> int:
    """The same bits for a sample alone, in batches, and in ragged ones; the number of ways that were compared."""
    ways = batches(op, device)
    assert ways, f"{op.name} has no `batches`"

    def joined(way: list[tuple]) -> list[Tensor]:
        outputs = [call(op, candidate, args) for args in way]
        return [torch.cat([o[i].flatten() for o in outputs]) for i in per_sample(op)]

    first, *others = [joined(way) for way in ways]
    differing = [
        i for i, other in enumerate(others, 1) if not all(torch.equal(f, o) for f, o in zip(first, other, strict=True))
    ]
    assert not differing, f"other bits in ways {differing} of {len(others)}"
    return len(others)


def inside_its_buffers(op: Op, candidate: Candidate, args: tuple) -> None:
    """Right, though it may read nothing around its inputs, write nothing around its outputs, and change no input.

    Inputs stand inside larger buffers of NaN, every tensor that is made meanwhile inside a larger one of canaries.
    Allocations within a compiled library are not seen: raw ops take their outputs from the caller.
    """
    args = tensors(args, Tensor.detach)
    buffers: list[Tensor] = []

    def guard(t: Tensor) -> Tensor:
        if far(t):
            return t
        buffer, view = _inside(t, t.numel(), poison(t.dtype))
        buffers.append(buffer)
        return view

    guarded = tensors(args, guard)
    before = tensors(guarded, lambda t: t if far(t) else t.clone())
    mode = _Canaries()
    with numerics.poisoned(), mode:
        found = leaves(candidate.run(*guarded))
    found += leaves([guarded[i] for i in mutated(op)])
    # An op in place may have nothing to allocate: what it writes stands between the guards of its arguments.
    mode.check(required=not mutated(op))
    for buffer in buffers:
        around = torch.cat([buffer[:GUARD], buffer[-GUARD:]])
        numerics.exact(around, torch.full_like(around, poison(buffer.dtype)))
    agrees(op, found, args)
    for i, (old, new) in enumerate(zip(before, guarded, strict=True)):
        if i not in mutated(op):
            for o, n in zip(leaves(old), leaves(new), strict=True):
                if not far(o):
                    numerics.exact(n, o)


def far(t: Tensor) -> bool:
    """Whether the tensor spans too much memory to be copied: made to have rows far apart."""
    return sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True) if n) > 2**26


def poison(dtype: torch.dtype) -> Any:
    return torch.nan if dtype.is_floating_point else _CANARY.get(dtype, 77)


def _inside(like: Tensor, numel: int, fill: Any) -> tuple[Tensor, Tensor]:
    """(buffer, a view in its middle with the values, shape and layout of `like`)."""
    span = 1 + sum((n - 1) * s for n, s in zip(like.shape, like.stride(), strict=True)) if numel else 0
    # The offset keeps 64-byte alignment, which decides over vector loads.
    buffer = like.new_full((span + 2 * GUARD,), fill)
    view = buffer.as_strided(like.shape, like.stride(), GUARD)
    # Overlapping layouts (expanded tensors) are written through their distinct elements.
    if numel:
        distinct = [slice(0, 1) if s == 0 else slice(None) for s in like.stride()]
        view[tuple(distinct)] = like[tuple(distinct)]
    return buffer, view


class _Canaries(TorchDispatchMode):
    """Every tensor that is allocated inside stands in a buffer of canaries, which `check` looks at."""

    def __init__(self) -> None:
        super().__init__()
        self._buffers: list[tuple[Tensor, int]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket not in _ALLOCATIONS or not isinstance(out, Tensor):
            return out
        buffer, view = _inside(out, out.numel(), _fill(out.dtype))
        self._buffers.append((buffer, buffer.numel() - 2 * GUARD))
        return view

    def check(self, required: bool) -> None:
        assert self._buffers or not required, "no output was allocated where it could be guarded"
        for buffer, span in self._buffers:
            around = torch.cat([buffer[:GUARD], buffer[GUARD + span :]])
            changed = int((around != _fill(buffer.dtype)).sum())
            assert not changed, f"{changed} elements around an output of {span} were overwritten"


def _fill(dtype: torch.dtype) -> Any:
    return _CANARY.get(dtype, 77)


def widened(args: tuple) -> tuple:
    """Floating tensors as float64 leaves."""

    def widen(t: Tensor) -> Tensor:
        return t.detach().double().requires_grad_(t.requires_grad) if t.is_floating_point() else t

    return tensors(args, widen)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def same_with_any_threads(op: Op, candidate: Candidate, args: tuple) -> None:
    """CPU kernels: the same bits whatever the number of threads."""
    found = []
    for count in (1, 2, 5):
        with threads(count):
            found.append(call(op, candidate, args))
    for other in found[1:]:
        for o, f in zip(other, found[0], strict=True):
            numerics.exact(o, f)
