"""act_fwd_stats: the activation of a feed-forward block, gated or not, with a mask and the statistics of its result.

Its backward is `act_bwd_maskgrad`, so gradients of masks cost no bytes beyond those of the activation's own backward.
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

SCHEMA = (
    '(Tensor pre, Tensor? up=None, str act="gelu", Tensor? mask=None, bool mask_before=False, '
    "Tensor? cu_seqlens=None, bool stats=False) -> (Tensor, Tensor, Tensor, Tensor)"
)
KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# In the order of csrc/cpu/vmath.h and triton_kernels/activations.py, which take the position.
ACTS = ("silu", "gelu", "gelu_tanh", "relu")
# Beyond this an activation is 0 or the identity in every dtype: at infinities the op gives the limits.
LIMIT = 750.0


def act_fwd_stats(
    pre: Tensor,
    up: Tensor | None = None,
    act: str = "gelu",
    mask: Tensor | None = None,
    mask_before: bool = False,
    cu_seqlens: Tensor | None = None,
    stats: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """act(pre) * up * mask, or act(pre * mask) * up, and on request mean, squared deviations and |.| over tokens.

    pre: `[B, T, F]`, or `[N_tok, F]` with cu_seqlens; float32, bfloat16, float16 or float64 (torch backend only). Any
        strides; a last dimension that is not contiguous is copied.
    up: like pre, or None for a plain activation. SwiGLU, GeGLU and ReGLU are `act` "silu", "gelu" and "relu" with up.
    act: "silu", "gelu" (with erf), "gelu_tanh" or "relu".
    mask: `[F]` or `[B, F]`, floating. On the activation's output, or with `mask_before` on its input pre.
    cu_seqlens: `[B + 1]` int32 or int64, non-decreasing: sample b owns tokens cu_seqlens[b] to cu_seqlens[b + 1].
        Tokens before the first and after the last offset are not read and 0 in `out`. On CUDA the values are not
        checked (no host sync).
    stats: also return the statistics.

    Returns (out, mean, m2, l1). out: pre's shape and dtype, contiguous. With `stats`, per sample and channel over the
    tokens of `out` as it is stored, float32 `[B, F]` (float64 for float64): the mean, the sum of squared deviations
    from it, the sum of absolute values; 0 for an empty sample. Without, three empty tensors. The statistics are merged
    in a fixed order by the formula of Chan et al. (1979), which does not cancel where the mean is large. The C++ and
    Triton backends are deterministic, and a sample's bits do not depend on the rest of the batch.
    `out` is differentiable in pre, up and mask (by `act_bwd_maskgrad`, once); the statistics are not differentiable.

    Raises: InputError for shapes, dtypes, an activation or offsets that do not fit; BackendError, see
    `pyprune.ops.backend`.

    >>> x = torch.tensor([[[-1.0, 2.0], [3.0, 4.0]]])
    >>> out, mean, m2, l1 = act_fwd_stats(x, act="relu", stats=True)
    >>> out.tolist(), mean.tolist(), m2.tolist(), l1.tolist()
    ([[[0.0, 2.0], [3.0, 4.0]]], [[1.5, 3.0]], [[4.5, 2.0]], [[3.0, 6.0]])
    """
    return torch.ops.pyprune.act_fwd_stats.default(pre, up, act, mask, mask_before, cu_seqlens, stats)


def check_activation(op: str, like: dict[str, Tensor | None], act: str, mask: Tensor | None, cu: Tensor | None) -> None:
    """What act_fwd_stats and act_bwd_maskgrad ask of their arguments, without reading data.

    like: the tensors that must be alike by name, pre among them.
    """
    pre = like["pre"]
    assert pre is not None
    if pre.dim() != (3 if cu is None else 2):
        expected = "[B, T, F]" if cu is None else "[N_tok, F] with cu_seqlens"
        raise InputError(f"{op}: pre must be {expected}, got {list(pre.shape)}")
    if pre.dtype not in (*KERNEL_DTYPES, torch.float64):
        raise InputError(f"{op}: pre must be float32, bfloat16, float16 or float64, got {pre.dtype}")
    for name, t in like.items():
        if t is not None and (t.shape != pre.shape or t.dtype != pre.dtype):
            raise InputError(
                f"{op}: {name} must be like pre, {pre.dtype} {list(pre.shape)}, got {t.dtype} {list(t.shape)}"
            )
    if act not in ACTS:
        raise InputError(f"{op}: act {act!r} is unknown; choose from {', '.join(ACTS)}")
    check_offsets(op, cu)
    rows = sample_count(pre, cu)
    if mask is not None and (
        tuple(mask.shape) not in ((pre.shape[-1],), (rows, pre.shape[-1])) or not mask.is_floating_point()
    ):
        raise InputError(
            f"{op}: mask must be floating, [F] = [{pre.shape[-1]}] or [B, F] = [{rows}, {pre.shape[-1]}], got "
            f"{mask.dtype} {list(mask.shape)}"
        )
    if any(t is not None and t.device != pre.device for t in (*like.values(), mask, cu)):
        raise InputError(f"{op}: all tensors must be on one device, pre's is {pre.device}")


def check(pre, up, act, mask, mask_before, cu_seqlens, stats) -> None:
    check_activation("act_fwd_stats", {"pre": pre, "up": up}, act, mask, cu_seqlens)
    check_offset_values("act_fwd_stats", cu_seqlens, pre.shape[0])


def sample_count(pre: Tensor, cu_seqlens: Tensor | None) -> int:
    return pre.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """What sums over tokens are held in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def activate(z: Tensor, act: str) -> Tensor:
    """act(z); at infinities the limits."""
    if act == "relu":
        return torch.where(z < 0, 0, z)
    near = z.clamp(-LIMIT, LIMIT)
    value = F.silu(near) if act == "silu" else F.gelu(near, approximate="tanh" if act == "gelu_tanh" else "none")
    return torch.where(z > LIMIT, z, value)


def rows_of(mask: Tensor | None, pre: Tensor, cu_seqlens: Tensor | None) -> Tensor | float:
    """The mask so that it broadcasts over pre; 1 outside the samples of a ragged batch."""
    if mask is None:
        return 1.0
    mask = mask.to(wide_dtype(pre.dtype))
    if mask.dim() == 1:
        return mask
    if cu_seqlens is None:
        return mask[:, None, :]
    rows = [mask[b].expand(e - s, -1) for b, (s, e) in enumerate(pairwise(cu_seqlens.tolist()))]
    first, last = int(cu_seqlens[0]), int(cu_seqlens[-1])
    outside = mask.new_ones((1, pre.shape[1]))
    return torch.cat([outside.expand(first, -1), *rows, outside.expand(pre.shape[0] - last, -1)])


def inside_of(values: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """`values` with zeros at the tokens that belong to no sample, which may hold NaN."""
    if cu_seqlens is None:
        return values.contiguous()
    first, last = int(cu_seqlens[0]), int(cu_seqlens[-1])
    return F.pad(values[first:last], (0, 0, first, values.shape[0] - last))


def per_sample(values: Tensor, cu_seqlens: Tensor | None, reduce) -> Tensor:
    """reduce(tokens of a sample) for every sample, `[B, F]`."""
    if cu_seqlens is None:
        spans = list(values)
    else:
        spans = [values[s:e] for s, e in pairwise(cu_seqlens.tolist())]
    rows = [reduce(v) if len(v) else v.new_zeros(v.shape[1]) for v in spans]
    return torch.stack(rows) if rows else values.new_zeros((0, values.shape[-1]))


def reference(pre, up, act, mask, mask_before, cu_seqlens, stats):
    """The definition in torch; exact to float64 for float64 inputs."""
    wide = wide_dtype(pre.dtype)
    m = rows_of(mask, pre, cu_seqlens)
    z = pre.to(wide)
    out = activate(z * m, act) if mask_before else activate(z, act) * m
    out = inside_of((out if up is None else out * up.to(wide)).to(pre.dtype), cu_seqlens)
    if not stats:
        return out, *(out.new_empty(0, dtype=wide) for _ in range(3))
    stored = out.detach().to(wide)
    mean = per_sample(stored, cu_seqlens, lambda v: v.mean(0))
    m2 = per_sample(stored, cu_seqlens, lambda v: (v - v.mean(0)).square().sum(0))
    return out, mean, m2, per_sample(stored, cu_seqlens, lambda v: v.abs().sum(0))


def rows_contiguous(t: Tensor | None) -> Tensor | None:
    """`t` as kernels need it: neighbouring columns next to each other."""
    return t if t is None or t.stride(-1) == 1 else t.contiguous()


def _prepared(run):
    def call(pre, up, act, mask, mask_before, cu_seqlens, stats):
        outputs = fake(pre, up, act, mask, mask_before, cu_seqlens, stats)
        if pre.numel() == 0:
            return tuple(o.zero_() for o in outputs)
        mask, cu_seqlens = mask if mask is None else mask.float().contiguous(), rows_contiguous(cu_seqlens)
        run(rows_contiguous(pre), rows_contiguous(up), ACTS.index(act), mask, mask_before, cu_seqlens, stats, *outputs)
        return outputs

    return call


def _run_cpp(*args) -> None:
    _native.op("cpp", "act_fwd_stats")(*args)


def _run_triton(*args) -> None:
    from pyprune.triton_kernels.act_fwd_stats import act_fwd_stats as launch

    launch(*args)


def _supports(pre, *_) -> Support:
    return (True, "") if pre.dtype in KERNEL_DTYPES else (False, f"no kernel for {pre.dtype}")


def _supports_triton(pre, up, act, mask, mask_before, cu_seqlens, stats) -> Support:
    from pyprune.triton_kernels.activations import supports

    return supports(pre, cu_seqlens)


def fake(pre, up=None, act="gelu", mask=None, mask_before=False, cu_seqlens=None, stats=False):
    check_activation("act_fwd_stats", {"pre": pre, "up": up}, act, mask, cu_seqlens)
    shape = (sample_count(pre, cu_seqlens), pre.shape[-1]) if stats else (0,)
    return pre.new_empty(pre.shape), *(pre.new_empty(shape, dtype=wide_dtype(pre.dtype)) for _ in range(3))


def setup_context(ctx, inputs, output) -> None:
    pre, up, ctx.act, mask, ctx.mask_before, cu_seqlens, _ = inputs
    ctx.save_for_backward(pre, up, mask, cu_seqlens)
    ctx.mark_non_differentiable(*output[1:])


def backward(ctx, grad: Tensor, *_):
    pre, up, mask, cu_seqlens = ctx.saved_tensors
    dpre, dup, after, before = torch.ops.pyprune.act_bwd_maskgrad.default(
        grad, pre, up, ctx.act, mask, ctx.mask_before, cu_seqlens
    )
    dmask = None
    if mask is not None and ctx.needs_input_grad[3]:
        dmask = before if ctx.mask_before else after
        dmask = (dmask.sum(0) if mask.dim() == 1 else dmask).to(mask.dtype)
    return dpre, dup if up is not None else None, None, dmask, None, None, None


def samples() -> Iterator[tuple]:
    generator = torch.Generator().manual_seed(0)
    make = lambda *shape, dtype=torch.float32: torch.randn(*shape, generator=generator).to(dtype)  # noqa: E731
    leaf = lambda *shape: make(*shape).requires_grad_()  # noqa: E731
    yield leaf(2, 5, 12), leaf(2, 5, 12), "silu", leaf(2, 12), False, None, False
    yield leaf(3, 4, 6), None, "gelu", leaf(6), True, None, True
    yield leaf(7, 6), leaf(7, 6), "gelu_tanh", leaf(3, 6), True, torch.tensor([1, 3, 3, 6]), True
    yield leaf(2, 3, 4), leaf(2, 3, 4), "relu"
    for act in ACTS:
        for dtype in KERNEL_DTYPES:
            yield make(1, 37, 20, dtype=dtype), None, act, None, False, None, True
    yield make(2, 0, 3), None, "gelu", None, False, None, True


def bytes_moved(pre, up=None, act="gelu", mask=None, mask_before=False, cu_seqlens=None, stats=False) -> int:
    tensors = 2 if up is None else 3
    small = 4 * sample_count(pre, cu_seqlens) * pre.shape[-1] * 3 if stats else 0
    return tensors * pre.numel() * pre.element_size() + small


def flops(pre, up=None, *_) -> int:
    """An activation counted as one, as every transcendental function."""
    return (1 if up is None else 2) * pre.numel()


OP = Op(
    name="act_fwd_stats",
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
library.register_fake("pyprune::act_fwd_stats", fake)
library.register_autograd("pyprune::act_fwd_stats", backward, setup_context=setup_context)
