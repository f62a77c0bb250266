"""wgrad_group_scores: element-wise Taylor and Fisher scores of a linear layer, summed over its rows and its columns.

LLM-Pruner (Ma et al. 2023, §3.2) and optimal brain damage (LeCun et al. 1989) score the elements of a weight by |w g|
and by w^2 sum_b g_b^2. Groups of output and of input units need only the row and the column sums, for which neither the
weight gradient nor one for every sample has to exist.
"""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor, library

from pyprune.core.errors import InputError
from pyprune.ops import _native
from pyprune.ops._dispatch import Candidate, Op, Support, detached, triton_missing
from pyprune.ops._offsets import check_offset_values, check_offsets

SCHEMA = '(Tensor dy, Tensor x, Tensor w, Tensor? cu_seqlens=None, str mode="abs") -> (Tensor rows, Tensor columns)'
KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Their places are the numbers by which the C++ kernel knows them.
MODES = ("abs", "sq", "mix")


def wgrad_group_scores(
    dy: Tensor, x: Tensor, w: Tensor, cu_seqlens: Tensor | None = None, mode: str = "abs"
) -> tuple[Tensor, Tensor]:
    """Row and column sums of a score of every element of a linear layer's weight, in fp32.

    dy: `[B, T, p]`, or `[N_tok, p]` with cu_seqlens: the gradient at the layer's output. Of a loss summed over samples:
        a mean over B divides each sample's gradient by B, and "mix" has no scale.
    x: `[B, T, d]` or `[N_tok, d]`, the layer's input.
    w: `[p, d]`, the weight as `nn.Linear` stores it. All three share a device and one of float32, bfloat16, float16,
        float64 (torch backend only). Any strides; a last dimension that is not contiguous is copied.
    cu_seqlens: `[B + 1]` int32 or int64, non-decreasing: sample b owns tokens cu_seqlens[b] to cu_seqlens[b + 1].
        Tokens before the first and after the last offset are not read. On CUDA the values are not checked (no host
        sync).
    mode: with `g_b` the sum over sample b's tokens of `dy_t (outer) x_t`, and g the sum of all g_b,
        "abs": `|w g|`, LLM-Pruner's param_first;
        "sq": `w^2 sum_b g_b^2`, its param_second: optimal brain damage with the diagonal of the empirical Fisher;
        "mix": `|w g - w^2 sum_b g_b^2 / 2|`, its param_mix.

    Returns (rows, columns): float32 `[p]` and `[d]`, float64 for float64 inputs. `rows[i]` sums the scores of w's row i
    (an output unit), `columns[j]` those of its column j (an input unit). An empty sample adds nothing. The C++ and
    Triton backends are deterministic. Not differentiable.

    Raises: InputError for shapes, dtypes, offsets or a mode that do not fit; BackendError, see `pyprune.ops.backend`.

    >>> dy, x = torch.tensor([[[1.0, 2.0]], [[-1.0, 0.0]]]), torch.tensor([[[3.0]], [[1.0]]])
    >>> wgrad_group_scores(dy, x, torch.tensor([[2.0], [1.0]]))
    (tensor([4., 6.]), tensor([10.]))
    >>> wgrad_group_scores(dy, x, torch.tensor([[2.0], [1.0]]), mode="sq")
    (tensor([40., 36.]), tensor([76.]))
    """
    return torch.ops.pyprune.wgrad_group_scores.default(*detached(dy, x, w, cu_seqlens, mode))


def check(dy: Tensor, x: Tensor, w: Tensor, cu_seqlens: Tensor | None, mode: str) -> None:
    """Everything that can be told without reading data; shared by the op and its fake."""
    dims = 3 if cu_seqlens is None else 2
    if dy.dim() != dims or x.dim() != dims or dy.shape[:-1] != x.shape[:-1]:
        expected = "[B, T, p] and [B, T, d]" if cu_seqlens is None else "[N_tok, p] and [N_tok, d] with cu_seqlens"
        raise InputError(f"wgrad_group_scores: dy and x must be {expected}, got {list(dy.shape)} and {list(x.shape)}")
    if w.dim() != 2 or w.shape != (dy.shape[-1], x.shape[-1]):
        raise InputError(
            f"wgrad_group_scores: w must be {[dy.shape[-1], x.shape[-1]]} for this dy and x, got {list(w.shape)}"
        )
    dtypes = [t.dtype for t in (dy, x, w)]
    if len(set(dtypes)) > 1 or w.dtype not in (*KERNEL_DTYPES, torch.float64):
        raise InputError(f"wgrad_group_scores: dy, x and w must share a floating dtype, got {dtypes}")
    if len({t.device for t in (dy, x, w, cu_seqlens) if t is not None}) > 1:
        raise InputError("wgrad_group_scores: dy, x, w and cu_seqlens must be on one device")
    check_offsets("wgrad_group_scores", cu_seqlens)
    if mode not in MODES:
        raise InputError(f"wgrad_group_scores: mode must be one of {', '.join(MODES)}, got {mode!r}")


def check_values(dy: Tensor, x: Tensor, w: Tensor, cu_seqlens: Tensor | None, mode: str) -> None:
    check(dy, x, w, cu_seqlens, mode)
    check_offset_values("wgrad_group_scores", cu_seqlens, x.shape[0])


def reference(dy: Tensor, x: Tensor, w: Tensor, cu_seqlens: Tensor | None, mode: str) -> tuple[Tensor, Tensor]:
    """The definition in torch, a sample at a time; exact to float64 for float64 inputs."""
    wide = torch.float64 if w.dtype == torch.float64 else torch.float32
    w = w.to(wide)
    total, squares = torch.zeros_like(w), torch.zeros_like(w)
    for dy_b, x_b in samples_of(dy, x, cu_seqlens):
        gradient = dy_b.to(wide).T @ x_b.to(wide)
        total += gradient
        squares += gradient**2
    score = {
        "abs": lambda: (w * total).abs(),
        "sq": lambda: w**2 * squares,
        "mix": lambda: (w * total - w**2 * squares / 2).abs(),
    }[mode]()
    return score.sum(1), score.sum(0)


def samples_of(dy: Tensor, x: Tensor, cu_seqlens: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
    if cu_seqlens is None:
        yield from zip(dy, x, strict=True)
    else:
        yield from ((dy[s:e], x[s:e]) for s, e in pairwise(cu_seqlens.tolist()))


def _prepared(run):
    """What every kernel needs: contiguous rows, contiguous offsets, something to read."""

    def call(dy, x, w, cu_seqlens, mode):
        out = fake(dy, x, w, cu_seqlens, mode)
        if 0 in (dy.numel(), x.numel()) or (cu_seqlens is not None and cu_seqlens.shape[0] == 1):
            return tuple(t.zero_() for t in out)
        dy, x, w = (t if t.stride(-1) == 1 else t.contiguous() for t in (dy, x, w))
        run(dy, x, w, None if cu_seqlens is None else cu_seqlens.contiguous(), mode, *out)
        return out

    return call


def _run_cpp(dy, x, w, cu_seqlens, mode, rows, columns):
    _native.op("cpp", "wgrad_group_scores")(dy, x, w, cu_seqlens, MODES.index(mode), rows, columns)


def _run_triton(*args):
    from pyprune.triton_kernels.wgrad_group_scores import wgrad_group_scores as launch

    launch(*args)


def _supports(dy, x, w, cu_seqlens, mode) -> Support:
    return (True, "") if w.dtype in KERNEL_DTYPES else (False, f"no kernel for {w.dtype}")


def _supports_triton(*args) -> Support:
    from pyprune.triton_kernels.wgrad_group_scores import supports

    return supports(*args)


def fake(dy, x, w, cu_seqlens=None, mode="abs"):
    check(dy, x, w, cu_seqlens, mode)
    dtype = torch.float64 if w.dtype == torch.float64 else torch.float32
    return w.new_empty((w.shape[0],), dtype=dtype), w.new_empty((w.shape[1],), dtype=dtype)


def samples() -> Iterator[tuple]:
    generator = torch.Generator().manual_seed(0)
    make = lambda *shape, dtype=torch.float32: torch.randn(*shape, generator=generator).to(dtype)  # noqa: E731
    for (batch, tokens, p, d), dtype in zip(
        ((2, 5, 12, 7), (1, 37, 33, 20), (3, 1, 1, 40)), KERNEL_DTYPES, strict=True
    ):
        for mode in MODES:
            yield (
                make(batch, tokens, p, dtype=dtype),
                make(batch, tokens, d, dtype=dtype),
                make(p, d, dtype=dtype),
                None,
                mode,
            )
    for offsets in (torch.tensor([0, 3, 3, 9]), torch.tensor([1, 4, 8], dtype=torch.int32)):
        yield make(10, 12), make(10, 6), make(12, 6), offsets, "sq"
    yield make(2, 0, 3), make(2, 0, 4), make(3, 4), None, "mix"


def bytes_moved(dy: Tensor, x: Tensor, w: Tensor, cu_seqlens: Tensor | None = None, mode: str = "abs") -> int:
    return sum(t.numel() * t.element_size() for t in (dy, x, w)) + 4 * sum(w.shape)


def flops(dy: Tensor, x: Tensor, w: Tensor, cu_seqlens: Tensor | None = None, mode: str = "abs") -> int:
    """One weight-gradient product."""
    return 2 * dy.numel() * x.shape[-1]


OP = Op(
    name="wgrad_group_scores",
    schema=SCHEMA,
    candidates=(
        Candidate("triton", ("cuda",), _prepared(_run_triton), triton_missing, _supports_triton),
        Candidate("cpp", ("cpu",), _prepared(_run_cpp), lambda: _native.missing("cpp"), _supports),
        Candidate("torch", ("cpu", "cuda"), reference),
    ),
    check=check_values,
    samples=samples,
    bytes_moved=bytes_moved,
    flops=flops,
)
library.register_fake("pyprune::wgrad_group_scores", fake)
