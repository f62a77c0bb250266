"""rearrange: exchange pruned units so that the mask gradients of the pruned ones cancel (Kwon et al. 2022, §4.2).

Fisher search prunes the units with the smallest diagonal; rearrangement then accounts for the off-diagonal of one
block's Fisher matrix `F = g^T g`, at the same number of pruned units: the loss that pruning a set P costs is `1_P^T F
1_P`.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, library

from pyprune.core.errors import InputError, NumericsError
from pyprune.ops import _native
from pyprune.ops._dispatch import Candidate, Op, detached

SCHEMA = "(Tensor g, int keep) -> Tensor"
# Squared and summed over units and samples they must stay finite. Only float64 holds larger numbers.
LARGEST = 1e140


def rearrange(g: Tensor, keep: int) -> Tensor:
    """The units to keep such that ||sum over pruned i of g[:, i]||^2 is small, by exchange.

    g: `[S, n]`, one row of mask gradients per sample, any floating dtype; the arithmetic is float64.
    keep: how many units to keep, 0 to n.

    The pruned set starts as the n - keep units of smallest norm. Every other unit joins in order of its norm, and each
    time the member leaves without which the norm of the sum is smallest (it may be the one that just joined). Ties: the
    lowest index.

    Returns the kept units, int64 `[keep]`, sorted, on g's device. Not differentiable.

    Raises: InputError for a g that is not `[S, n]` or a `keep` out of range; NumericsError for NaN, Inf or numbers
    above 1e140.

    >>> rearrange(torch.tensor([[1.0, 2.0, -2.0, 3.0]]), keep=2)  # pruning 2 and -2 costs nothing
    tensor([0, 3])
    """
    return torch.ops.pyprune.rearrange.default(*detached(g, keep))


def check(g: Tensor, keep: int) -> None:
    if g.dim() != 2 or not g.dtype.is_floating_point:
        raise InputError(f"rearrange: g must be floating [samples, units], got {g.dtype} {list(g.shape)}")
    if not 0 <= keep <= g.shape[1]:
        raise InputError(f"rearrange: keep must be 0 to {g.shape[1]}, got {keep}")


def check_values(g: Tensor, keep: int) -> None:
    check(g, keep)
    if not bool(g.isfinite().all()):
        raise NumericsError("rearrange: g holds NaN or Inf; look for them in the gradients of this layer")
    if g.dtype == torch.float64 and g.numel() and float(g.abs().max()) > LARGEST:
        raise NumericsError(f"rearrange: g holds numbers above {LARGEST}, whose squares overflow; scale it down")


def reference(g: Tensor, keep: int) -> Tensor:
    """The definition, O(samples * n) per step, in float64."""
    columns, units = _columns(g), g.shape[1]
    order = columns.square().sum(1).argsort(stable=True)
    pruned = torch.zeros(units, dtype=torch.bool, device=g.device)
    if keep < units:
        pruned[order[: units - keep]] = True
        total = columns[pruned].sum(0)
        for unit in order[units - keep :].tolist():
            pruned[unit] = True
            total = total + columns[unit]
            members = pruned.nonzero()[:, 0]
            costs = (total - columns[members]).square().sum(1)
            leaves = members[int((costs == costs.min()).nonzero()[0])]
            pruned[leaves] = False
            total = total - columns[leaves]
    return (~pruned).nonzero()[:, 0]


def _columns(g: Tensor) -> Tensor:
    """The units as float64 rows, one behind the other: torch adds the numbers of a row in one order wherever it stands,
    those of a column in another at the edge of the matrix, and then equal units are no tie.
    """
    return g.T.to(torch.float64, memory_format=torch.contiguous_format).contiguous()


def run_cpp(g: Tensor, keep: int) -> Tensor:
    units = g.shape[1]
    if keep in (0, units):
        return torch.arange(keep, device=g.device)
    columns = _columns(g.detach().cpu())
    order = columns.square().sum(1).argsort(stable=True)
    pruned = torch.zeros(units, dtype=torch.bool)
    pruned[order[: units - keep]] = True
    kept = order.new_empty(keep)
    _native.op("cpp", "rearrange")(columns, order, columns[pruned].sum(0), keep, kept)
    return kept.to(g.device)


def fake(g: Tensor, keep: int) -> Tensor:
    check(g, keep)
    return g.new_empty((keep,), dtype=torch.int64)


def samples() -> Iterator[tuple]:
    generator = torch.Generator().manual_seed(0)
    for samples, units, keep in ((4, 7, 3), (1, 5, 4), (8, 40, 20), (3, 6, 6), (3, 6, 0)):
        yield torch.randn(samples, units, generator=generator), keep


def bytes_moved(g: Tensor, keep: int) -> int:
    """g once, the members of P in float64 once for every batch of 32 joiners, and two numbers a member and step."""
    samples, units = g.shape
    members = units - keep
    return g.numel() * g.element_size() + 8 * members * (samples * -(-keep // 32) + 2 * keep) + 8 * keep


def flops(g: Tensor, keep: int) -> int:
    """The products of every joiner with every member; exchanges, whose number depends on the values, come on top."""
    return 2 * g.shape[0] * (g.shape[1] - keep) * keep


OP = Op(
    name="rearrange",
    schema=SCHEMA,
    candidates=(
        # The loop is serial and its input small: GPU tensors are worth the copy to the CPU.
        Candidate("cpp", ("cpu", "cuda"), run_cpp, lambda: _native.missing("cpp")),
        Candidate("torch", ("cpu", "cuda"), reference),
    ),
    check=check_values,
    samples=samples,
    bytes_moved=bytes_moved,
    flops=flops,
)
library.register_fake("pyprune::rearrange", fake)
