"""A plan says which units stay. It is plain JSON, so that it can be read, edited and applied again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pyprune.core.anatomy import Anatomy
from pyprune.core.errors import InputError, MismatchError
from pyprune.core.storage import read_json, write_json
from pyprune.core.units import ASKED_AXES, QUERY_HEADS


@dataclass
class Plan:
    """`kept[name]` holds the kept unit indices of a group: sorted, int64, without repeats.

    `sizes[name]` is the group's size before pruning, `length` the sequence length at which FLOPs are counted, and
    `meta` records where the plan came from (criterion, budget, seed, model).
    """

    kept: dict[str, torch.Tensor]
    sizes: dict[str, int]
    length: float
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kept.keys() != self.sizes.keys():
            raise InputError(
                f"plan: groups with and without a size differ: {sorted(self.kept.keys() ^ self.sizes.keys())}"
            )
        if not (math.isfinite(self.length) and self.length > 0):
            raise InputError(f"plan: length={self.length} must be positive")
        self.kept = {name: _checked(name, index, self.sizes[name]) for name, index in self.kept.items()}

    @classmethod
    def keep_all(cls, anatomy: Anatomy, length: float = 1.0) -> Plan:
        sizes = {g.name: g.size for g in anatomy.groups}
        return cls({name: torch.arange(size) for name, size in sizes.items()}, sizes, length)

    @property
    def axes(self) -> tuple[str, ...]:
        """Those axes of its groups that an anatomy has to be asked for."""
        last = {name.rpartition(".")[2] for name in self.sizes}
        if "kv_groups" in last:
            last.discard(QUERY_HEADS)  # of layers with uneven groups, which have nothing else
        return tuple(axis for axis in ASKED_AXES if axis in last)

    @property
    def counts(self) -> dict[str, int]:
        """Kept units a group."""
        return {name: int(index.numel()) for name, index in self.kept.items()}

    def without(self, name: str) -> Plan:
        """The plan for all other groups; the same where there is none of this name."""
        kept = {other: units for other, units in self.kept.items() if other != name}
        return Plan(kept, {other: self.sizes[other] for other in kept}, self.length, dict(self.meta))

    def mask(self, name: str) -> torch.Tensor:
        """`[size]` bool, True = keep."""
        mask = torch.zeros(self.sizes[name], dtype=torch.bool)
        mask[self.kept[name]] = True
        return mask

    def check(self, anatomy: Anatomy) -> None:
        """Raise MismatchError unless the plan was made for a model of this anatomy.

        InputError when a group keeps fewer units than it has to, or tokens that an earlier layer does not.
        """
        sizes = {g.name: g.size for g in anatomy.groups}
        if self.sizes != sizes:
            odd = sorted(n for n in self.sizes.keys() | sizes.keys() if self.sizes.get(n) != sizes.get(n))
            raise MismatchError(
                f"the plan was made for another model: {odd[0]} has {sizes.get(odd[0], 'no')} units here, "
                f"{self.sizes.get(odd[0], 'none')} in the plan"
            )
        for group in anatomy.groups:
            if len(self.kept[group.name]) < group.least:
                raise InputError(f"plan: {group.name} must keep at least {group.least} of {group.size} units")
        anatomy.tokens_seen(self.kept)
        if anatomy.vocabulary:
            lost = anatomy.vocabulary.needed - set(self.kept[anatomy.vocabulary.units.name].tolist())
            if lost:
                raise InputError(
                    f"plan: {anatomy.vocabulary.units.name} must keep token {min(lost)}, which the model's config or "
                    "its tokenizer needs"
                )

    def check_made(self, anatomy: Anatomy) -> None:
        """MismatchError unless the plan may have made the model of `anatomy` (names move up by layers left out)."""
        for group in anatomy.groups:
            if group.name not in self.sizes or (not self.axes and self.counts[group.name] != group.size):
                raise MismatchError(
                    f"the plan did not make this model: {group.name} has {group.size} units here, "
                    f"{self.counts.get(group.name, 'none')} are kept by the plan"
                )

    def cost(self, anatomy: Anatomy, resource: str) -> float:
        """Kept FLOPs (per sequence of `self.length` tokens) or parameters of the prunable blocks."""
        counts = anatomy.counts(self.kept)
        return anatomy.flops(self.length, counts) if resource == "flops" else float(anatomy.params(counts))

    def explain(self, anatomy: Anatomy) -> str:
        """A table: what stays in every block, and what that leaves of FLOPs and parameters."""
        self.check(anatomy)
        flops, params = anatomy.flops(self.length), anatomy.params()
        lines = [f"{'group':<24}{'kept':>12}{'of':>8}{'share':>8}{'saves FLOPs':>14}{'saves params':>14}"]
        for g in anatomy.groups:
            kept = self.counts[g.name]
            gone = g.size - kept
            saved = gone * g.cost.flops(self.length), gone * g.cost.params
            if g.axis in ASKED_AXES:  # without a cost of its own: what it takes from a model that keeps all else
                alone = anatomy.counts(
                    {o.name: torch.arange(o.size) for o in anatomy.groups} | {g.name: self.kept[g.name]}
                )
                saved = flops - anatomy.flops(self.length, alone), params - anatomy.params(alone)
            lines.append(
                f"{g.name:<24}{kept:>12}{g.size:>8}{kept / max(g.size, 1):>8.1%}"
                f"{saved[0] / flops:>14.2%}{saved[1] / params:>14.2%}"
            )
        lines.append(
            f"blocks keep {self.cost(anatomy, 'flops') / flops:.2%} of their FLOPs at {self.length:.1f} tokens a "
            f"sequence and {self.cost(anatomy, 'params') / params:.2%} of their weights"
        )
        return "\n".join(lines)

    def save(self, path: str | Path) -> None:
        groups = {name: {"size": self.sizes[name], "keep": index.tolist()} for name, index in self.kept.items()}
        write_json(path, {"pyprune_plan": 1, "length": self.length, "meta": self.meta, "groups": groups})

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan, edited by hand or not; InputError says what is wrong with it."""
        data = read_json(path)
        if data.get("pyprune_plan") != 1 or not isinstance(data.get("groups"), Mapping):
            raise InputError(f'{path}: not a pyprune plan (no "pyprune_plan": 1 and "groups")')
        try:
            kept = {name: torch.tensor(g["keep"]) for name, g in data["groups"].items()}
            sizes = {name: g["size"] for name, g in data["groups"].items()}
            if odd := [name for name, size in sizes.items() if type(size) is not int]:
                raise InputError(f"plan: {odd[0]} has the size {sizes[odd[0]]!r}, which is no number of units")
            return cls(kept, sizes, float(data["length"]), dict(data.get("meta", {})))
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"{path}: broken plan ({type(error).__name__}: {error})") from None


def _checked(name: str, index: torch.Tensor, size: int) -> torch.Tensor:
    """`index` as sorted int64, or InputError."""
    index = torch.as_tensor(index).detach().cpu()
    whole = not (index.is_floating_point() or index.dtype == torch.bool)
    if index.dim() != 1 or not (whole or index.numel() == 0):
        raise InputError(f"plan: {name} must keep a list of unit numbers, found {index.dtype} {list(index.shape)}")
    if index.numel() and (index.min() < 0 or index.max() >= size):
        raise InputError(f"plan: {name} keeps a unit outside 0..{size - 1}")
    ordered = index.to(torch.int64).unique()
    if ordered.numel() != index.numel():
        raise InputError(f"plan: {name} keeps a unit twice")
    return ordered
