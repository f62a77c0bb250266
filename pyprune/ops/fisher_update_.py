"""fisher_update_: adds the sum of squared mask gradients, the diagonal of the Fisher information of unit masks.

`F[n] += sum_s (scale[s] * g[s, n])^2` (Kwon et al. 2022, eq. 5, over samples). A scale undoes what the loss did to a
sample's gradient: B for a mean over B samples, the number of tokens for a mean over them.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, library

from pyprune.core.errors import InputError
from pyprune.ops import _native
from pyprune.ops._dispatch import Candidate, Op, Support, triton_missing

SCHEMA = "(Tensor(a!) F, Tensor g, Tensor? scale=None) -> ()"
KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Rows that the C++ kernel sums at a stretch: kSegment of csrc/common/segments.h.
SEGMENT = 512


def fisher_update_(F: Tensor, g: Tensor, scale: Tensor | None = None) -> None:
    """Add the sum over rows of `(scale * g) ** 2` to F, in place.

    F: `[n]`, float32 or float64, any stride but 0; must not require a gradient.
    g: `[S, n]`, float32, bfloat16, float16 or float64 (torch backend only). Any strides; a last dimension that is not
        contiguous is copied.
    scale: `[S]`, float32 (float64 for a float64 g), one factor a row; 1 if left out.

    The sum over the rows of one call is accumulated in float64, whatever the dtypes, and then added to F. The C++ and
    Triton backends are deterministic: rows are added in an order that depends on S alone. Not differentiable.

    Raises: InputError for shapes or dtypes that do not fit, an F that requires a gradient or is expanded, or tensors on
    two devices.

    >>> F = torch.tensor([1.0, 0.0])
    >>> fisher_update_(F, torch.tensor([[1.0, 2.0], [3.0, -4.0]]), torch.tensor([1.0, 0.5]))
    >>> F
    tensor([4.2500, 8.0000])
    """
    torch.ops.pyprune.fisher_update_.default(F, g.detach(), None if scale is None else scale.detach())


def check(F: Tensor, g: Tensor, scale: Tensor | None) -> None:
    if g.dim() != 2 or g.dtype not in (*KERNEL_DTYPES, torch.float64):
        raise InputError(f"fisher_update_: g must be floating [samples, units], got {g.dtype} {list(g.shape)}")
    if F.dim() != 1 or F.shape[0] != g.shape[1] or F.dtype not in (torch.float32, torch.float64):
        raise InputError(f"fisher_update_: F must be float32 or float64 [{g.shape[1]}] for a g of {list(g.shape)}, got "
                         f"{F.dtype} {list(F.shape)}")  # fmt: skip
    if F.shape[0] > 1 and F.stride(0) == 0:
        raise InputError("fisher_update_: F must not be expanded, its elements share memory; clone it first")
    if F.requires_grad:
        raise InputError("fisher_update_: F must not require a gradient; the update is not differentiable")
    if scale is not None:
        wanted = torch.float64 if g.dtype == torch.float64 else torch.float32
        if scale.shape != g.shape[:1] or scale.dtype != wanted:
            raise InputError(f"fisher_update_: scale must be {wanted} [{g.shape[0]}], got {scale.dtype} "
                             f"{list(scale.shape)}")  # fmt: skip
    if F.device != g.device or (scale is not None and scale.device != g.device):
        raise InputError("fisher_update_: F, g and scale must be on one device")


def reference(F: Tensor, g: Tensor, scale: Tensor | None) -> None:
    """The definition in torch, in float64."""
    wide = g.double() if scale is None else g.double() * scale.double()[:, None]
    F += wide.square().sum(0)


def _prepared(run):
    """What every kernel needs: contiguous rows and something to add."""

    def call(F, g, scale):
        if g.numel():
            g = g if g.stride(-1) == 1 else g.contiguous()
            run(F, g, scale if scale is None else scale.contiguous())

    return call


def _run_cpp(F, g, scale):
    partial = g.new_empty((-(-g.shape[0] // SEGMENT), g.shape[1]), dtype=torch.float64)
    _native.op("cpp", "fisher_update_")(F, g, scale, partial)


def _run_triton(*args):
    from pyprune.triton_kernels.fisher_update_ import fisher_update_ as launch

    launch(*args)


def _supports(F, g, scale) -> Support:
    return (True, "") if g.dtype in KERNEL_DTYPES else (False, f"no kernel for {g.dtype}")


def _supports_triton(*args) -> Support:
    from pyprune.triton_kernels.fisher_update_ import supports

    return supports(*args)


def fake(F, g, scale=None) -> None:
    check(F, g, scale)


def samples() -> Iterator[tuple]:
    generator = torch.Generator().manual_seed(0)
    make = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    for (rows, units), scaled in (((5, 12), False), ((37, 100), True), ((1, 3), True), ((0, 4), False), ((3, 0), True)):
        for dtype in KERNEL_DTYPES:
            yield make(units), make(rows, units).to(dtype), make(rows) if scaled else None
    yield make(12).double(), make(5, 12), make(5)


def bytes_moved(F: Tensor, g: Tensor, scale: Tensor | None = None) -> int:
    factors = 0 if scale is None else scale.numel() * scale.element_size()
    return g.numel() * g.element_size() + factors + 2 * F.numel() * F.element_size()


def flops(F: Tensor, g: Tensor, scale: Tensor | None = None) -> int:
    return (2 if scale is None else 3) * g.numel()


OP = Op(
    name="fisher_update_",
    schema=SCHEMA,
    candidates=(
        Candidate("triton", ("cuda",), _prepared(_run_triton), triton_missing, _supports_triton),
        Candidate("cpp", ("cpu",), _prepared(_run_cpp), lambda: _native.missing("cpp"), _supports),
        Candidate("torch", ("cpu", "cuda"), reference),
    ),
    check=check,
    samples=samples,
    bytes_moved=bytes_moved,
    flops=flops,
)
library.register_fake("pyprune::fisher_update_", fake)
