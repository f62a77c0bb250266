"""Budgets: how much of the prunable blocks may stay, in FLOPs or parameters, as a share or as an absolute figure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from pyprune.core.anatomy import Anatomy
from pyprune.core.errors import BudgetError
from pyprune.core.units import UnitGroup

RESOURCES = ("flops", "params")
_SUFFIX = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12}
_AMOUNT = re.compile(r"^\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z%]*)\s*$")


@dataclass(frozen=True)
class Limit:
    """`amount` of `resource` is the most that may stay; a share of the dense model when `relative`."""

    resource: str
    amount: float
    relative: bool

    def __str__(self) -> str:
        return (
            f"{self.amount:.4g} of the dense {self.resource}" if self.relative else f"{self.amount:.4g} {self.resource}"
        )


def parse_amount(resource: str, value: float | int | str) -> Limit:
    """Read `0.6` or `"60%"` (shares of the dense model), `"1.2G"` or `"7M"` (absolute amounts, always with a suffix).

    Raises BudgetError for NaN, zero, negative figures, shares above 1 and unknown suffixes.
    """
    if resource not in RESOURCES:
        raise BudgetError(f"unknown budget {resource!r}; known: {', '.join(RESOURCES)}")
    if isinstance(value, str):
        match = _AMOUNT.match(value)
        if match is None:
            raise BudgetError(f"budget {resource}={value!r} is not a number; write 0.6, 60% or an amount such as 1.2G")
        number, suffix = float(match[1]), match[2]
        if suffix == "%":
            number, suffix, relative = number / 100, "", True
        elif suffix.upper() in _SUFFIX:
            relative = suffix == ""
            number *= _SUFFIX[suffix.upper()]
        else:
            raise BudgetError(f"budget {resource}={value!r}: unknown suffix {suffix!r}; use % or one of K M G B T")
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        number, relative = float(value), True
    else:
        raise BudgetError(f"budget {resource}={value!r} is not a number; write 0.6, 60% or an amount such as 1.2G")
    if math.isnan(number) or number <= 0:
        raise BudgetError(f"budget {resource}={value!r} must be above 0")
    if relative and number > 1:
        raise BudgetError(
            f"budget {resource}={value!r} is a share and must not exceed 1 (or give an amount such as 1.2G)"
        )
    if math.isinf(number):
        raise BudgetError(f"budget {resource}={value!r} must be finite")
    return Limit(resource, number, relative)


def amount_text(amount: float) -> str:
    """`amount` as `parse_amount` reads it, rounded up: `1234567` is `"1.234567M"`."""
    suffix = next((s for s in "TGM" if amount >= _SUFFIX[s]), "K")
    return f"{math.ceil(amount / _SUFFIX[suffix] * 1e6) / 1e6:.6f}".rstrip("0").rstrip(".") + suffix


@dataclass(frozen=True)
class Budget:
    """One or several limits that a plan must keep, all at once."""

    limits: tuple[Limit, ...]

    @classmethod
    def parse(cls, spec: Budget | Mapping[str, float | str]) -> Budget:
        """`{"flops": 0.6}`, `{"params": "7M", "flops": "60%"}`; BudgetError for anything else."""
        if isinstance(spec, Budget):
            return spec
        if not isinstance(spec, Mapping) or not spec:
            raise BudgetError(f'budget={spec!r}: give a mapping such as {{"flops": 0.6}}')
        return cls(tuple(parse_amount(resource, value) for resource, value in spec.items()))

    def absolute(self, anatomy: Anatomy, length: float) -> dict[str, float]:
        """The limits as amounts for `anatomy`, FLOPs at sequences of `length` tokens."""
        dense = {"flops": anatomy.flops(length), "params": float(anatomy.params())}
        return {m.resource: m.amount * dense[m.resource] if m.relative else m.amount for m in self.limits}

    def to_dict(self) -> dict[str, str]:
        return {m.resource: f"{m.amount * 100:.12g}%" if m.relative else f"{m.amount / 1e9:.12g}G" for m in self.limits}


def unit_cost(group: UnitGroup, resource: str, length: float) -> float:
    """Cost of one unit of `group`: FLOPs per sequence of `length` tokens, or parameters."""
    return group.cost.flops(length) if resource == "flops" else float(group.cost.params)
