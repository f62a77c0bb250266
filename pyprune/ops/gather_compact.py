"""gather_compact: the kept rows and columns of many weights at once, the physical side of a pruning plan.

A plan cuts some ten tensors a layer. Cut one by one that is a call, and on a GPU a launch, for each; here one launch
reads what is kept, folds a mask's values into it, and pads it to a width that kernels like.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, library

from pyprune.core.errors import InputError
from pyprune.ops import _native
from pyprune.ops._dispatch import Candidate, Op, Support, detached

SCHEMA = (
    "(Tensor[] tensors, Tensor?[] rows, Tensor?[] columns, Tensor?[] row_scales, Tensor?[] column_scales, "
    "int multiple=1) -> Tensor[]"
)
SCALED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
COPIED_DTYPES = (*SCALED_DTYPES, torch.float64, torch.int16, torch.int32, torch.int64)

Optionals = Sequence[Tensor | None]


def gather_compact(
    tensors: Sequence[Tensor],
    rows: Optionals,
    columns: Optionals | None = None,
    row_scales: Optionals | None = None,
    column_scales: Optionals | None = None,
    multiple: int = 1,
) -> list[Tensor]:
    """`tensor[rows][:, columns]` of every tensor, scaled and padded with zeros, in one launch.

    tensors: `[n]` or `[n, m]` (biases, weights), any strides, on one device; float32, bfloat16, float16, float64,
        int16, int32 or int64, not necessarily the same (other dtypes: torch backend only).
    rows, columns: for every tensor the indices that stay along dimension 0 and 1, int64, strictly increasing; None
        keeps the dimension as it is. On the tensors' device or on the CPU. Those on CUDA are not checked (no host
        sync); those on the CPU reach a GPU in one copy, which a CUDA graph cannot capture.
    row_scales, column_scales: for every tensor a floating factor for each row and column that stays, or None:
        `out[i, j] = tensor[rows[i], columns[j]] * row_scales[i] * column_scales[j]`, multiplied in fp32 (fp64 for
        float64) and rounded once. A mask on the units of a projection is its column scale. Floating tensors only.
    multiple: dimensions with indices are padded with zeros to the next multiple of this.

    Returns new contiguous tensors, each with storage of its own, the bits of the input where nothing is scaled. Not
    differentiable: the results are detached.

    Raises: InputError for lengths, shapes, dtypes, devices or indices that do not fit; BackendError, see
    `pyprune.ops.backend`.

    >>> up, down = torch.arange(6.0).view(3, 2), torch.arange(6.0).view(2, 3)
    >>> kept = torch.tensor([0, 2])
    >>> gather_compact([up, down], [kept, None], [None, kept], column_scales=[None, torch.tensor([1.0, 0.5])])
    [tensor([[0., 1.],
            [4., 5.]]), tensor([[0., 1.],
            [3., 2.5000]])]
    """
    if not tensors:
        return []
    none = [None] * len(tensors)
    return torch.ops.pyprune.gather_compact.default(
        detached(*tensors),
        rows,
        none if columns is None else columns,
        none if row_scales is None else detached(*row_scales),
        none if column_scales is None else detached(*column_scales),
        multiple,
    )


def check(tensors, rows, columns, row_scales, column_scales, multiple) -> None:
    """Everything that can be told without reading data; shared by the op and its fake."""
    named = {"rows": rows, "columns": columns, "row_scales": row_scales, "column_scales": column_scales}
    for name, given in named.items():
        if len(given) != len(tensors):
            raise InputError(f"gather_compact: {len(tensors)} tensors but {len(given)} {name}; give None for no cut")
    if multiple < 1:
        raise InputError(f"gather_compact: multiple must be at least 1, got {multiple}")
    for i, t in enumerate(tensors):
        if t.dim() not in (1, 2) or t.device != tensors[0].device:
            raise InputError(
                f"gather_compact: tensors must be [n] or [n, m] on {tensors[0].device}, "
                f"tensors[{i}] is {list(t.shape)} on {t.device}"
            )
        _check_cut(t, 0, rows[i], row_scales[i], f"rows[{i}]", f"row_scales[{i}]")
        _check_cut(t, 1, columns[i], column_scales[i], f"columns[{i}]", f"column_scales[{i}]")


def _check_cut(t: Tensor, dim: int, index: Tensor | None, scale: Tensor | None, name: str, scale_name: str) -> None:
    if dim >= t.dim() and (index is not None or scale is not None):
        raise InputError(f"gather_compact: {name} and {scale_name} must be None, the tensor is {list(t.shape)}")
    if index is not None:
        if index.dim() != 1 or index.dtype != torch.int64:
            raise InputError(f"gather_compact: {name} must be int64 [kept], got {index.dtype} {list(index.shape)}")
        if index.device != t.device and index.device.type != "cpu":
            raise InputError(f"gather_compact: {name} is on {index.device}; move it to {t.device} or the CPU")
    if scale is not None:
        kept = t.shape[dim] if index is None else index.shape[0]
        if scale.shape != (kept,) or not scale.dtype.is_floating_point or not t.dtype.is_floating_point:
            raise InputError(
                f"gather_compact: {scale_name} must be floating [{kept}] for a floating tensor, "
                f"got {scale.dtype} {list(scale.shape)} for {t.dtype}"
            )
        if scale.device != t.device:
            raise InputError(f"gather_compact: {scale_name} is on {scale.device}, its tensor on {t.device}")


def check_values(tensors, rows, columns, row_scales, column_scales, multiple) -> None:
    """`check` and the indices on the CPU, which kernels trust. On CUDA reading them would wait for the device."""
    check(tensors, rows, columns, row_scales, column_scales, multiple)
    seen = set()
    for dim, indices, name in ((0, rows, "rows"), (1, columns, "columns")):
        for i, (t, index) in enumerate(zip(tensors, indices, strict=True)):
            if index is None or index.device.type != "cpu" or not index.numel():
                continue
            # Query, key and value share their heads' indices: looked at once.
            if (id(index), t.shape[dim]) in seen:
                continue
            seen.add((id(index), t.shape[dim]))
            low, high = int(index[0]), int(index[-1])
            if low < 0 or high >= t.shape[dim] or not bool((index[1:] > index[:-1]).all()):
                raise InputError(
                    f"gather_compact: {name}[{i}] must increase strictly within 0 to {t.shape[dim] - 1}, "
                    f"got {len(index)} indices from {low} to {high}"
                )


def padded(index: Tensor | None, size: int, multiple: int) -> int:
    """The output's size along a dimension of `size`."""
    return size if index is None else -(-index.shape[0] // multiple) * multiple


def reference(tensors, rows, columns, row_scales, column_scales, multiple) -> list[Tensor]:
    """The definition in torch; exact to float64 for float64 inputs."""
    outs = fake(tensors, rows, columns, row_scales, column_scales, multiple)
    for out, t, row, column, row_scale, column_scale in zip(
        outs, tensors, rows, columns, row_scales, column_scales, strict=True
    ):
        kept = t if row is None else t.index_select(0, row.to(t.device))
        kept = kept if column is None else kept.index_select(1, column.to(t.device))
        if row_scale is not None or column_scale is not None:
            kept = kept.to(_wide(t))
            if row_scale is not None:
                kept = kept * (row_scale.to(_wide(t)) if t.dim() == 1 else row_scale.to(_wide(t))[:, None])
            if column_scale is not None:
                kept = kept * column_scale.to(_wide(t))
        out.zero_()[tuple(slice(n) for n in kept.shape)] = kept
    return outs


def _wide(t: Tensor) -> torch.dtype:
    return torch.float64 if t.dtype == torch.float64 else torch.float32


def fake(tensors, rows, columns, row_scales, column_scales, multiple=1) -> list[Tensor]:
    check(tensors, rows, columns, row_scales, column_scales, multiple)
    return [
        t.new_empty([padded(cut, n, multiple) for cut, n in zip((row, column), t.shape, strict=False)])
        for t, row, column in zip(tensors, rows, columns, strict=True)
    ]


def _prepared(run):
    """What every kernel needs: outputs, contiguous rows, contiguous indices, scales in fp32."""

    def call(tensors, rows, columns, row_scales, column_scales, multiple):
        outs = fake(tensors, rows, columns, row_scales, column_scales, multiple)
        tensors = [t if t.stride(-1) == 1 else t.contiguous() for t in tensors]
        rows, columns = ([None if i is None else i.contiguous() for i in some] for some in (rows, columns))
        scales = (
            [None if s is None else s.to(torch.float32).contiguous() for s in some]
            for some in (row_scales, column_scales)
        )
        if any(out.numel() for out in outs):
            run(tensors, rows, columns, *scales, outs)
        return outs

    return call


def _run_cpp(*args) -> None:
    _native.op("cpp", "gather_compact")(*args)


def _run_cuda(tensors, rows, columns, *rest) -> None:
    device = tensors[0].device
    rows, columns = _on_device([*rows, *columns], device, len(rows))
    _native.op("cuda", "gather_compact")(tensors, rows, columns, *rest)


def _on_device(indices: list[Tensor | None], device: torch.device, first: int) -> tuple[list, list]:
    """All indices on the device, those on the CPU by one copy that the host does not wait for; split at `first`."""
    waiting = {id(i): i for i in indices if i is not None and i.device.type == "cpu"}
    moved: dict[int, Tensor] = {}
    if waiting:
        if torch.cuda.is_current_stream_capturing():
            raise InputError("gather_compact: move rows and columns to the GPU before a CUDA graph is captured")
        packed = torch.cat(list(waiting.values())).pin_memory().to(device, non_blocking=True)
        parts = packed.split([len(i) for i in waiting.values()])
        moved = dict(zip(waiting, parts, strict=True))
    found = [None if i is None else moved.get(id(i), i) for i in indices]
    return found[:first], found[first:]


def _supports(tensors, rows, columns, row_scales, column_scales, multiple) -> Support:
    for t, row_scale, column_scale in zip(tensors, row_scales, column_scales, strict=True):
        scaled = row_scale is not None or column_scale is not None
        if t.dtype not in (SCALED_DTYPES if scaled else COPIED_DTYPES):
            return False, f"no kernel for {'scaled ' if scaled else ''}{t.dtype}"
    return True, ""


def samples() -> Iterator[tuple]:
    generator = torch.Generator().manual_seed(0)
    make = lambda *shape, dtype=torch.float32: torch.randn(*shape, generator=generator).to(dtype)  # noqa: E731
    some, few, none = torch.tensor([0, 2, 3, 6]), torch.tensor([1, 4]), torch.tensor([], dtype=torch.int64)
    for dtype in SCALED_DTYPES:
        weights = [make(7, 5, dtype=dtype), make(7, dtype=dtype), make(5, 7, dtype=dtype)]
        yield weights, [some, some, None], [None, None, some], [None] * 3, [None, None, make(4)], 1
    weights = [make(7, 5), make(5), make(3, 7, dtype=torch.float64)]
    yield weights, [some, few, none], [few, None, some], [make(4), make(2), None], [make(2), None, None], 8
    yield [make(3, 2)], [None], [None], [None], [None], 4


def bytes_moved(tensors, rows, columns, row_scales, column_scales, multiple: int = 1) -> int:
    """What is kept, read once, and the outputs; a kernel also reads what shares a cache line with a kept column."""
    moved = 0
    for t, row, column in zip(tensors, rows, columns, strict=True):
        kept = written = t.element_size()
        for index, n in zip((row, column), t.shape, strict=False):
            kept *= n if index is None else index.shape[0]
            written *= padded(index, n, multiple)
        moved += kept + written
    given = [*rows, *columns, *row_scales, *column_scales]
    unique = {id(t): t.numel() * t.element_size() for t in given if t is not None}
    return moved + sum(unique.values())


def flops(tensors, rows, columns, row_scales, column_scales, multiple: int = 1) -> int:
    """One multiplication for each kept value and scale."""
    total = 0
    for t, row, column, *scales in zip(tensors, rows, columns, row_scales, column_scales, strict=True):
        kept = 1
        for index, n in zip((row, column), t.shape, strict=False):
            kept *= n if index is None else index.shape[0]
        total += kept * sum(s is not None for s in scales)
    return total


OP = Op(
    name="gather_compact",
    schema=SCHEMA,
    candidates=(
        Candidate("cuda", ("cuda",), _prepared(_run_cuda), lambda: _native.missing("cuda"), _supports),
        Candidate("cpp", ("cpu",), _prepared(_run_cpp), lambda: _native.missing("cpp"), _supports),
        Candidate("torch", ("cpu", "cuda"), reference),
    ),
    check=check_values,
    samples=samples,
    bytes_moved=bytes_moved,
    flops=flops,
)
library.register_fake("pyprune::gather_compact", fake)
