"""knapsack: one option of every group, the highest total value within a budget; exact, by dynamic programming.

The multiple-choice knapsack problem (Sinha and Zoltners 1979). A search under a measured latency is one: a group is a
block, an option is a width that it may have, the value is the score of the units that then stay.
"""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor, library

from pyprune.core.errors import InputError
from pyprune.ops import _native
from pyprune.ops._dispatch import Candidate, Op

SCHEMA = "(Tensor values, Tensor costs, Tensor offsets, int budget) -> Tensor"

# Budgets that the C++ kernel keeps in registers; a row of its table is a multiple of them.
_RUN = 32
_LARGEST_TABLE_BYTES = 2**31
# Sums of the same floats in another order differ in their last bits, as in pyprune/search.
_ROUNDING = 1 + 1e-12


def knapsack(values: Tensor, costs: Tensor, offsets: Tensor, budget: int) -> Tensor:
    """The option of every group that gives the highest total value at a total cost of at most `budget`.

    values: float64 `[options]`, of any sign, their sum finite.
    costs: int64 `[options]`, not negative; `quantise_costs` makes them from real costs.
    offsets: int64 `[groups + 1]`: group i owns the options offsets[i] to offsets[i + 1], at least one and at most
        32,767.
    budget: 0 or more. Time is options * budget; memory is groups * budget bytes (twice that with groups of more than
        256 options), at most 2 GiB.

    Returns int64 `[groups]`: which option of each group, counted from the group's first. Ties: values are added group
    by group in float64; of choices with equal sums the one is returned whose last group has the lower option, then
    whose last but one has, and so on. Computed on the CPU; CUDA tensors are copied there and wait for the device. Not
    differentiable.

    Raises: InputError for shapes, dtypes, values or offsets that do not fit, and if the cheapest options exceed the
    budget.

    >>> values = torch.tensor([0.0, 3.0, 5.0, 0.0, 4.0], dtype=torch.float64)
    >>> knapsack(values, torch.tensor([0, 2, 4, 0, 3]), torch.tensor([0, 3, 5]), budget=5)  # 3 + 4 at a cost of 2 + 3
    tensor([1, 1])
    """
    return torch.ops.pyprune.knapsack.default(values.detach(), costs, offsets, budget)


def quantise_costs(costs: Tensor, budget: float, bins: int = 10_000) -> tuple[Tensor, int]:
    """Real costs and their budget as integers for `knapsack`: whatever fits the integers fits the real budget.

    If all costs are multiples of one unit (heads, neurons, granules of equal cost) of which the budget holds at most
    `bins`, costs become counts of it, and nothing is lost. Else a unit is `budget / bins` and costs are rounded up, so
    that a choice of one option from each of k groups may leave k / bins of the budget unused.

    costs: floating, finite, not negative, any shape. Returns int64 costs (what exceeds the budget is cut to one unit
    above it) and the budget in units.

    Raises: InputError for costs or a budget that are negative or not finite, or no bins.

    >>> quantise_costs(torch.tensor([0.0, 2.5, 5.0, 7.5]), 6.0)  # multiples of 2.5, of which two fit
    (tensor([0, 1, 2, 3]), 2)
    """
    costs = costs.detach().double()
    if not bool(((costs >= 0) & costs.isfinite()).all()):
        raise InputError("quantise_costs: costs must be finite and not negative")
    if not 0 <= budget < float("inf") or bins < 1:
        raise InputError(f"quantise_costs: needs a budget of 0 or more and bins, got {budget} and {bins}")
    unit = _common_unit(costs, budget / bins)
    if unit:
        whole, most = (costs / unit).round(), int(budget * _ROUNDING / unit)
    elif budget:
        unit, most = budget / bins, bins
        whole = (costs / unit).ceil()
        whole += whole * unit < costs  # the division may have rounded down to an integer
    else:
        whole, most = (costs > 0).double(), 0
    return whole.clamp(max=most + 1).long(), most


def _common_unit(costs: Tensor, least: float) -> float:
    """The largest number, at least `least`, of which all costs are multiples to rounding; 0 if there is none."""
    distinct = costs[costs > 0].unique().tolist()
    if not distinct:
        return 0.0
    unit, zero = 0.0, 1e-9 * distinct[-1]
    for cost in distinct:
        while cost > zero:
            unit, cost = cost, unit % cost  # Euclid's algorithm, on floats
        if unit < least:
            return 0.0
    whole = torch.tensor(distinct, dtype=torch.float64)
    counts = (whole / unit).round()
    unit = float(whole.sum() / counts.sum())
    return unit if bool(((counts * unit - whole).abs() <= (_ROUNDING - 1) * whole).all()) else 0.0


def check(values: Tensor, costs: Tensor, offsets: Tensor, budget: int) -> None:
    for name, tensor, dtype in (("values", values, torch.float64), ("costs", costs, torch.int64),
                                ("offsets", offsets, torch.int64)):  # fmt: skip
        if tensor.dim() != 1 or tensor.dtype != dtype:
            raise InputError(f"knapsack: {name} must be {dtype} of one dimension, got {tensor.dtype} "
                             f"{list(tensor.shape)}")  # fmt: skip
    if values.shape != costs.shape or offsets.shape[0] < 1:
        raise InputError(f"knapsack: {list(values.shape)} values, {list(costs.shape)} costs and "
                         f"{list(offsets.shape)} offsets do not belong together")  # fmt: skip
    if not values.device == costs.device == offsets.device:
        raise InputError("knapsack: values, costs and offsets must be on one device")
    if budget < 0:
        raise InputError(f"knapsack: budget={budget} must not be negative")


def check_values(values: Tensor, costs: Tensor, offsets: Tensor, budget: int) -> None:
    check(values, costs, offsets, budget)
    if not bool(values.isfinite().all()):
        raise InputError("knapsack: values hold NaN or Inf; leave out options that are not to be taken")
    # A total of -Inf would look like a choice that the budget does not hold.
    if not bool(values.abs().sum().isfinite()):
        raise InputError("knapsack: values are so large that their sum overflows; divide them by a common factor")
    if bool((costs < 0).any()):
        raise InputError(f"knapsack: costs must not be negative, got {int(costs.min())}")
    sizes = offsets.diff()
    if int(offsets[0]) != 0 or int(offsets[-1]) != values.shape[0] or bool((sizes < 1).any()):
        raise InputError(f"knapsack: offsets must rise from 0 to {values.shape[0]} with an option in every group, got "
                         f"{offsets.tolist()}")  # fmt: skip
    if sizes.numel() == 0:
        return
    if int(sizes.max()) > torch.iinfo(torch.int16).max:
        raise InputError(f"knapsack: a group has {int(sizes.max())} options, more than {torch.iinfo(torch.int16).max}")
    size = sizes.numel() * (budget + _RUN) * _table_dtype(sizes).itemsize
    if size > _LARGEST_TABLE_BYTES:
        raise InputError(f"knapsack: a budget of {budget} takes a table of {size / 2**30:.1f} GiB, more than "
                         f"{_LARGEST_TABLE_BYTES / 2**30:.0f}; quantise costs to fewer bins")  # fmt: skip
    group = torch.arange(sizes.numel(), device=sizes.device).repeat_interleave(sizes)
    cheapest = torch.full_like(sizes, budget + 1).scatter_reduce_(0, group, costs, "amin")
    if int(cheapest.sum()) > budget:
        raise InputError(f"knapsack: budget={budget} is below the cheapest options' total of {int(cheapest.sum())}")


def _table_dtype(sizes: Tensor) -> torch.dtype:
    return torch.uint8 if int(sizes.max()) <= 256 else torch.int16


def reference(values: Tensor, costs: Tensor, offsets: Tensor, budget: int) -> Tensor:
    """The recurrence in torch, one vector of all budgets at a time."""
    device, bounds = values.device, list(pairwise(offsets.tolist()))
    values, prices = values.cpu(), costs.tolist()
    best = values.new_zeros(budget + 1)
    table = []
    for begin, end in bounds:
        after, taken = torch.full_like(best, -torch.inf), torch.zeros(budget + 1, dtype=torch.int64)
        for option in range(begin, end):
            if prices[option] <= budget:
                found = best[: budget + 1 - prices[option]] + values[option]
                after_part, taken_part = after[prices[option] :], taken[prices[option] :]
                better = found > after_part
                after_part[better], taken_part[better] = found[better], option - begin
        best = after
        table.append(taken)
    choice, left = [], budget
    for (begin, _), taken in zip(reversed(bounds), reversed(table), strict=True):
        choice.append(int(taken[left]))
        left -= prices[begin + choice[-1]]
    return torch.tensor(choice[::-1], dtype=torch.int64, device=device)


def run_cpp(values: Tensor, costs: Tensor, offsets: Tensor, budget: int) -> Tensor:
    device = values.device
    values, costs, offsets = (t.cpu().contiguous() for t in (values, costs, offsets))
    groups = offsets.shape[0] - 1
    choice = costs.new_empty(groups)
    if groups:
        width = -(-(budget + 1) // _RUN) * _RUN
        table = values.new_empty((groups, width), dtype=_table_dtype(offsets.diff()))
        _native.op("cpp", "knapsack")(values, costs, offsets, budget, table, choice)
    return choice.to(device)


def fake(values: Tensor, costs: Tensor, offsets: Tensor, budget: int) -> Tensor:
    check(values, costs, offsets, budget)
    return offsets.new_empty(offsets.shape[0] - 1)


def samples() -> Iterator[tuple]:
    generator = torch.Generator().manual_seed(0)
    for sizes, budget in (([3, 2], 5), ([1], 9), ([4, 1, 7, 300], 40), ([2, 2, 2], 33), ([], 3)):
        options = sum(sizes)
        values = torch.randn(options, generator=generator, dtype=torch.float64)
        costs = torch.randint(0, 12, (options,), generator=generator)
        offsets = torch.tensor([0, *sizes]).cumsum(0)
        costs[offsets[:-1]] = 0
        yield values, costs, offsets, budget


def bytes_moved(values: Tensor, costs: Tensor, offsets: Tensor, budget: int) -> int:
    """The table, written once, and the options."""
    return (offsets.shape[0] - 1) * (budget + 1) + 16 * values.numel() + 16 * offsets.numel()


def flops(values: Tensor, costs: Tensor, offsets: Tensor, budget: int) -> int:
    """An addition and a comparison for each option and budget."""
    return 2 * values.numel() * (budget + 1)


OP = Op(
    name="knapsack",
    schema=SCHEMA,
    candidates=(
        # A table of megabytes and groups one after the other: GPU tensors are worth the copy to the CPU.
        Candidate("cpp", ("cpu", "cuda"), run_cpp, lambda: _native.missing("cpp")),
        Candidate("torch", ("cpu", "cuda"), reference),
    ),
    check=check_values,
    samples=samples,
    bytes_moved=bytes_moved,
    flops=flops,
)
library.register_fake("pyprune::knapsack", fake)
