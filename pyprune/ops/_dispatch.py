"""One dispatcher below the op boundary: which implementation of an op serves a call.

*Auto* takes the first candidate of the device's order that supports the call, and says once per reason, at INFO level,
why a better one did not. *An explicit choice succeeds or raises* `BackendError`. Exceptions of a kernel are never
caught.
"""

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import library

from pyprune.core.errors import BackendError

log = logging.getLogger("pyprune.ops")

BACKENDS = ("cuda", "triton", "cpp", "torch")

# (True, "") or (False, why not)
Support = tuple[bool, str]


@dataclass(frozen=True)
class Candidate:
    """One implementation of an op.

    `available` says why it cannot run in this process at all, or None; `supports` looks at one call's arguments. `run`
    takes the op's arguments in schema order. Imports of the kernel's module happen inside these functions, never at
    import time. Auto passes over an `on_request` candidate: no measurement has shown it to be faster than the next.
    """

    backend: str
    devices: tuple[str, ...]
    run: Callable
    available: Callable[[], str | None] = lambda: None
    supports: Callable[..., Support] = lambda *args: (True, "")
    on_request: bool = False


@dataclass(frozen=True)
class Row:
    """One line of `pyprune info`: whether `op` can run on `backend` here, and if not, why."""

    op: str
    backend: str
    available: bool
    reason: str


@dataclass
class Op:
    """A public op: its name, its candidates (best first, the torch reference last) and what describes it to others.

    check: raises InputError for arguments that no backend can serve; called first, with every argument
    samples: zero-argument function giving argument tuples (CPU tensors) for opcheck and the tests
    bytes_moved, flops: the traffic and arithmetic the op cannot avoid, from its arguments; 2 FLOPs per multiply-add
    """

    name: str
    schema: str
    candidates: tuple[Candidate, ...]
    check: Callable[..., None]
    samples: Callable[[], Iterator[tuple]]
    bytes_moved: Callable[..., int]
    flops: Callable[..., int]
    _told: set[str] = field(default_factory=set, repr=False)

    def __post_init__(self) -> None:
        if self.candidates[-1].backend != "torch":
            raise ValueError(f"{self.name}: the last candidate must be the torch reference")
        library.define(f"pyprune::{self.name}", self.schema)
        library.impl(f"pyprune::{self.name}", "default")(self)
        OPS[self.name] = self

    @property
    def overload(self):
        """The op as PyTorch sees it: `torch.ops.pyprune.<name>.default`."""
        return getattr(torch.ops.pyprune, self.name).default

    def select(self, *args) -> Candidate:
        """The candidate that serves these arguments.

        Raises: BackendError if a backend was chosen and cannot serve them.
        """
        device = device_of(args).type
        chosen = chosen_backend(self.name)
        reasons: list[str] = []
        for candidate in self.candidates:
            if chosen not in ("auto", candidate.backend):
                continue
            reason = self._why_not(candidate, device, args, explicit=chosen != "auto")
            if reason is None:
                for line in reasons:
                    self._tell(f"{line}; using {candidate.backend}")
                return candidate
            if chosen != "auto":
                raise BackendError(f"{self.name}: backend {chosen!r} was asked for but {reason}")
            if device in candidate.devices:
                reasons.append(f"{self.name}: not on {candidate.backend}: {reason}")
        if chosen != "auto":
            have = ", ".join(c.backend for c in self.candidates)
            raise BackendError(f"{self.name}: backend {chosen!r} was asked for but the op has only {have}")
        raise BackendError(f"{self.name}: no backend serves these arguments: {'; '.join(reasons)}")

    def __call__(self, *args):
        # PyTorch drops trailing arguments that equal their defaults before it calls a Python kernel.
        args += tuple(a.default_value for a in self.overload._schema.arguments[len(args) :])
        self.check(*args)
        candidate = self.select(*args)
        device = device_of(args)
        # Triton launches on the current device, whatever device its arguments are on.
        with torch.cuda.device(device) if candidate.backend == "triton" and device.type == "cuda" else nullcontext():
            return candidate.run(*args)

    def _why_not(self, candidate: Candidate, device: str, args: tuple, explicit: bool) -> str | None:
        reason = candidate.available()
        if reason is not None:
            return reason
        interpreted = explicit and candidate.backend == "triton" and device == "cpu" and interpreting()
        if device not in candidate.devices and candidate.backend != "torch" and not interpreted:
            return f"it does not serve {device} tensors"
        supported, reason = candidate.supports(*args)
        if supported and candidate.on_request and not explicit:
            return "not measured to be faster yet: choose it by name"
        return None if supported else reason

    def _tell(self, line: str) -> None:
        if line not in self._told:
            self._told.add(line)
            log.info(line)


def tensors(args: Iterable) -> Iterator[torch.Tensor]:
    """The tensors among an op's arguments, also those in lists."""
    for arg in args:
        if isinstance(arg, torch.Tensor):
            yield arg
        elif isinstance(arg, (list, tuple)):
            yield from tensors(arg)


def detached(*args) -> list:
    """Arguments of an op without a gradient: its results do not look as if they had one."""
    return [arg.detach() if isinstance(arg, torch.Tensor) else arg for arg in args]


def device_of(args: Iterable) -> torch.device:
    """Where the first tensor among an op's arguments lies; the CPU if there is none (empty lists)."""
    return next((t.device for t in tensors(args)), torch.device("cpu"))


OPS: dict[str, Op] = {}

# Process-wide and not a context variable: autograd runs the backward of CUDA graphs in threads of its own, which would
# not see the choice of the thread that called backward().
_choices: list[dict[str, str]] = []


def interpreting() -> bool:
    """Whether Triton kernels run in its interpreter, the only way they take CPU tensors. For tests: it is slow."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def triton_missing() -> str | None:
    """Why no Triton kernel can run in this process, or None."""
    try:
        import triton  # noqa: F401
    except ModuleNotFoundError:
        return "triton is not installed"
    if torch.version.cuda is None and not interpreting():
        return f"torch {torch.__version__} is built without CUDA"
    return None


def _parse(text: str, source: str) -> dict[str, str]:
    """`"triton"` or `"prod_reduce=triton,rearrange=torch"` as {op or "": backend}."""
    choice = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        op, _, name = part.rpartition("=")
        if name not in (*BACKENDS, "auto"):
            raise BackendError(f"{source}: {name!r} is no backend; choose from auto, {', '.join(BACKENDS)}")
        if op and op not in OPS:
            raise BackendError(f"{source}: {op!r} is no op; choose from {', '.join(OPS)}")
        choice[op] = name
    return choice


def chosen_backend(op: str) -> str:
    """The backend in force for `op`: the innermost `backend(...)` that speaks of it, else `PYPRUNE_BACKEND`, else
    "auto".
    """
    for choice in reversed(_choices):
        if op in choice or "" in choice:
            return choice.get(op, choice.get("", "auto"))
    text = os.environ.get("PYPRUNE_BACKEND", "")
    if not text:
        return "auto"
    choice = _parse(text, "PYPRUNE_BACKEND")
    return choice.get(op, choice.get("", "auto"))


@contextmanager
def backend(choice: str):
    """Run every op inside on one backend, or the named ops on theirs: it succeeds or raises, it never falls back.

    choice: `"cuda"`, `"triton"`, `"cpp"`, `"torch"` or `"auto"`; or `"prod_reduce=triton,rearrange=torch"`. Holds for
    the whole process, backward threads included.

    Raises: BackendError for an unknown name, and from the op inside for a backend that cannot serve it.

    >>> import torch, pyprune.ops as ops
    >>> with ops.backend("torch"):
    ...     ops.prod_reduce(torch.ones(1, 2, 3), torch.ones(1, 2, 3))
    tensor([[2., 2., 2.]])
    """
    _choices.append(_parse(choice, "backend()"))
    try:
        yield
    finally:
        _choices.pop()


def check_choice() -> None:
    """Raise BackendError when a backend in force by name cannot run here at all, before any work is done.

    An op that the chosen backend does not implement is not an error until it is called.
    """
    for op in OPS.values():
        chosen = chosen_backend(op.name)
        missing = {row.backend: row.reason for row in table() if row.op == op.name and not row.available}
        if chosen in missing:
            raise BackendError(f"{op.name}: backend {chosen!r} was asked for but {missing[chosen]}")


def table() -> list[Row]:
    """Every op and backend with whether it can run here and, if not, why."""
    rows = []
    for op in OPS.values():
        for candidate in op.candidates:
            reason = candidate.available()
            rows.append(Row(op.name, candidate.backend, reason is None, reason or ""))
    return rows
