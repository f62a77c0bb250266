"""prod_reduce: the per-sample sum over tokens of an element-wise product, the mask gradient of every unit at once.

With x an activation and y its gradient, `out[b, j]` is the derivative of sample b's loss with respect to a mask on unit
j (Kwon et al. 2022, eq. 5: empirical Fisher of mask variables), with no mask in the graph.
"""

from collections.abc import Iterator
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, library

from pyprune.core.errors import InputError
from pyprune.ops import _native
from pyprune.ops._dispatch import Candidate, Op, Support, triton_missing
from pyprune.ops._offsets import check_offset_values, check_offsets

SCHEMA = "(Tensor x, Tensor y, Tensor? cu_seqlens=None, int group=1, int mod_group=0) -> Tensor"
KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def prod_reduce(x: Tensor, y: Tensor, cu_seqlens: Tensor | None = None, group: int = 1, mod_group: int = 0) -> Tensor:
    """Sum x * y over each sample's tokens and over groups of columns, in fp32.

    x, y: `[B, T, N]`, or `[N_tok, N]` with cu_seqlens; float32, bfloat16, float16 or float64 (torch backend only), the
        same dtype and device. Any strides; a last dimension that is not contiguous is copied.
        y may have one dimension more in front, P probes that share x: `[P, B, T, N]`, or `[P, N_tok, N]` with
        cu_seqlens. x is then read once for all of them.
    cu_seqlens: `[B + 1]` int32 or int64, non-decreasing: sample b owns tokens cu_seqlens[b] to cu_seqlens[b + 1].
        Tokens before the first and after the last offset are not read. On CUDA the values are not checked (no host
        sync).
    group: sum that many neighbouring columns (the channels of a head): output `[B, N / group]`.
    mod_group: if positive, sum the columns that are congruent modulo it (one channel of every head): output `[B,
    mod_group]`.

    Returns float32 `[B, N]`, `[B, N / group]` or `[B, mod_group]`, with P in front if y has it (float64 for float64
    inputs); 0 for an empty sample. The C++, Triton and CUDA backends are deterministic, and a sample's bits depend
    neither on the rest of the batch nor on other probes. Differentiable in x and y.

    Raises: InputError for shapes, dtypes, groups or offsets that do not fit; BackendError, see `pyprune.ops.backend`.

    >>> x = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    >>> prod_reduce(x, torch.ones_like(x))
    tensor([[4., 6.]])
    >>> prod_reduce(x, torch.ones_like(x), group=2)
    tensor([[10.]])
    """
    return torch.ops.pyprune.prod_reduce.default(x, y, cu_seqlens, group, mod_group)


def check(x: Tensor, y: Tensor, cu_seqlens: Tensor | None, group: int, mod_group: int) -> None:
    """Everything that can be told without reading data; shared by the op and its fake."""
    dims = 3 if cu_seqlens is None else 2
    if x.dim() != dims or y.dim() not in (dims, dims + 1) or y.shape[-dims:] != x.shape:
        expected = "[B, T, N]" if cu_seqlens is None else "[N_tok, N] with cu_seqlens"
        raise InputError(
            f"prod_reduce: x and y must both be {expected}, y with one more dimension in front for probes if it has "
            f"any, got {list(x.shape)} and {list(y.shape)}"
        )
    if x.dtype != y.dtype or x.dtype not in (*KERNEL_DTYPES, torch.float64):
        raise InputError(f"prod_reduce: x and y must share a floating dtype, got {x.dtype} and {y.dtype}")
    if x.device != y.device or (cu_seqlens is not None and cu_seqlens.device != x.device):
        raise InputError("prod_reduce: x, y and cu_seqlens must be on one device")
    check_offsets("prod_reduce", cu_seqlens)
    if group < 1 or mod_group < 0 or (group > 1 and mod_group > 0):
        raise InputError(f"prod_reduce: group >= 1 or mod_group >= 0, not both, got {group} and {mod_group}")
    if x.shape[-1] % (mod_group or group) != 0:
        raise InputError(f"prod_reduce: {x.shape[-1]} columns are no multiple of group {mod_group or group}")


def check_values(x: Tensor, y: Tensor, cu_seqlens: Tensor | None, group: int, mod_group: int) -> None:
    check(x, y, cu_seqlens, group, mod_group)
    check_offset_values("prod_reduce", cu_seqlens, x.shape[0])


def outputs(columns: int, group: int, mod_group: int) -> int:
    return mod_group or columns // group


def reference(x: Tensor, y: Tensor, cu_seqlens: Tensor | None, group: int, mod_group: int) -> Tensor:
    """The definition in torch; exact to float64 for float64 inputs."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    if cu_seqlens is None:
        sums = (x.to(wide) * y.to(wide)).sum(-2)
    else:
        spans = pairwise(cu_seqlens.tolist())
        rows = [(x[s:e].to(wide) * y[..., s:e, :].to(wide)).sum(-2) for s, e in spans]
        sums = torch.stack(rows, -2) if rows else y.new_zeros((*y.shape[:-2], 0, y.shape[-1]), dtype=wide)
    if mod_group:
        return sums.unflatten(-1, (-1, mod_group)).sum(-2)
    return sums.unflatten(-1, (-1, group)).sum(-1) if group > 1 else sums


def _prepared(run):
    """What every kernel needs: contiguous rows, contiguous offsets, something to read."""

    def call(x, y, cu_seqlens, group, mod_group):
        if y.numel() == 0:
            return fake(x, y, cu_seqlens, group, mod_group).zero_()
        x, y = (t if t.stride(-1) == 1 else t.contiguous() for t in (x, y))
        return run(x, y, cu_seqlens.contiguous() if cu_seqlens is not None else None, group, mod_group)

    return call


def _run_cpp(*args):
    out = fake(*args)
    _native.op("cpp", "prod_reduce")(*args, out)
    return out


def _run_cuda(*args):
    out = fake(*args)
    _native.op("cuda", "prod_reduce")(*args, out)
    return out


def _run_triton(*args):
    from pyprune.triton_kernels.prod_reduce import prod_reduce as launch

    return launch(*args)


def _supports(x, y, cu_seqlens, group, mod_group) -> Support:
    if x.dtype not in KERNEL_DTYPES:
        return False, f"no kernel for {x.dtype}"
    return True, ""


def _supports_triton(*args) -> Support:
    from pyprune.triton_kernels.prod_reduce import supports

    return supports(*args)


def fake(x, y, cu_seqlens=None, group=1, mod_group=0):
    check(x, y, cu_seqlens, group, mod_group)
    samples = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    probes = y.shape[: y.dim() - x.dim()]
    return x.new_empty((*probes, samples, outputs(x.shape[-1], group, mod_group)), dtype=dtype)


def setup_context(ctx, inputs, output) -> None:
    x, y, cu_seqlens, ctx.group, ctx.mod_group = inputs
    ctx.probed = y.dim() > x.dim()
    ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, y if ctx.needs_input_grad[0] else None, cu_seqlens)


def backward(ctx, grad: Tensor):
    x, y, cu_seqlens = ctx.saved_tensors
    some = x if x is not None else y
    if ctx.mod_group:
        per_column = torch.cat([grad] * (some.shape[-1] // ctx.mod_group), -1)
    else:
        per_column = grad.repeat_interleave(ctx.group, dim=-1)
    if cu_seqlens is None:
        per_token, inside = per_column[..., None, :], None
    else:
        token = torch.arange(some.shape[-2], device=some.device, dtype=cu_seqlens.dtype)
        sample = torch.searchsorted(cu_seqlens, token, right=True) - 1
        inside = ((sample >= 0) & (sample < grad.shape[-2]))[:, None]
        # A row behind the last is there also if there is no sample.
        per_token = F.pad(per_column, (0, 0, 0, 1))[..., torch.where(inside[:, 0], sample, grad.shape[-2]), :]

    def times(other: Tensor | None, dims: int) -> Tensor | None:
        if other is None:
            return None
        product = per_token * other
        # Pads may hold NaN: 0 * NaN is NaN, so they are replaced and not multiplied.
        product = product if inside is None else torch.where(inside, product, 0)
        return (product.sum(0) if product.dim() > dims else product).to(other.dtype)

    dims = 3 if cu_seqlens is None else 2
    return times(y, dims), times(x, dims + ctx.probed), None, None, None


def samples() -> Iterator[tuple]:
    generator = torch.Generator().manual_seed(0)
    make = lambda *shape, dtype=torch.float32: torch.randn(*shape, generator=generator).to(dtype)  # noqa: E731
    for shape, group, mod_group in (((2, 5, 12), 1, 0), ((1, 37, 100), 1, 0), ((3, 1, 24), 8, 0), ((2, 7, 24), 1, 8)):
        for dtype in KERNEL_DTYPES:
            yield make(*shape, dtype=dtype), make(*shape, dtype=dtype), None, group, mod_group
    for offsets in (torch.tensor([0, 3, 3, 9]), torch.tensor([1, 4, 8], dtype=torch.int32)):
        yield make(10, 12), make(10, 12), offsets, 3, 0
    yield make(2, 5, 12), make(3, 2, 5, 12), None, 1, 4
    yield make(10, 12), make(5, 10, 12), offsets, 1, 0
    x, y = (make(2, 5, 12).requires_grad_() for _ in range(2))
    yield x, y, None, 4, 0
    yield make(2, 5, 12).requires_grad_(), make(3, 2, 5, 12).requires_grad_(), None, 4, 0


def bytes_moved(x: Tensor, y: Tensor, cu_seqlens=None, group: int = 1, mod_group: int = 0) -> int:
    samples = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    written = 4 * y.shape[: y.dim() - x.dim()].numel() * samples * outputs(x.shape[-1], group, mod_group)
    return x.numel() * x.element_size() + y.numel() * y.element_size() + written


def flops(x: Tensor, y: Tensor, *_) -> int:
    return 2 * y.numel()


OP = Op(
    name="prod_reduce",
    schema=SCHEMA,
    candidates=(
        Candidate("cuda", ("cuda",), _prepared(_run_cuda), lambda: _native.missing("cuda"), _supports),
        Candidate("triton", ("cuda",), _prepared(_run_triton), triton_missing, _supports_triton),
        Candidate("cpp", ("cpu",), _prepared(_run_cpp), lambda: _native.missing("cpp"), _supports),
        Candidate("torch", ("cpu", "cuda"), reference),
    ),
    check=check_values,
    samples=samples,
    bytes_moved=bytes_moved,
    flops=flops,
)
library.register_fake("pyprune::prod_reduce", fake)
library.register_autograd("pyprune::prod_reduce", backward, setup_context=setup_context)
