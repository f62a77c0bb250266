"""What a plan must respect besides its budget: units that stay in any case, and widths that hardware likes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from pyprune.core.anatomy import Anatomy, Block
from pyprune.core.errors import InputError
from pyprune.core.units import UnitGroup


def floors(
    anatomy: Anatomy,
    floor: int | Mapping[str, int] = 0,
    keep: Sequence[str] = (),
    axes: Sequence[str] | None = None,
    multiple_of: int = 1,
) -> dict[str, int]:
    """`{group: units that stay at least}`.

    - `floor`: units of every group, or of the groups that it names;
    - `keep`: patterns of blocks that stay whole. `*` stands for anything; a pattern is held against the group's name
      and the paths of the block's modules, with or without their first parts (`encoder.layer.0.*`, `layers.3.heads`);
    - `axes`: the only ones that lose units; None: all;
    - `multiple_of`: what stays is rounded up so that its channels are a multiple of this, or all.

    InputError for patterns that fit nothing and axes that the model does not have.
    """
    for name, given in (("keep", keep), ("axes", axes)):
        if isinstance(given, str):
            raise InputError(f"{name}={given!r}: give a list, [{given!r}]")
    _check_axes(anatomy, axes)
    if not isinstance(floor, (int, Mapping)):
        raise InputError(f"floor={floor!r}: give a number of units, or one for each group by its name")
    if not isinstance(floor, int) and (unknown := sorted(floor.keys() - {g.name for g in anatomy.groups})):
        raise InputError(f"floor: {unknown[0]!r} is no unit group of the model")
    for pattern in keep:
        if not any(_fits(pattern, block) for block in anatomy.blocks):
            raise InputError(
                f"keep={pattern!r} fits no block of the model; groups are called {anatomy.groups[0].name}, ..., "
                f"modules {anatomy.blocks[0].projection}, ..."
            )
    beyond = [group for group in anatomy.groups[len(anatomy.blocks) :] if group.axis != "vocab"]
    if keep and beyond:
        raise InputError(
            f"keep={keep[0]!r}: the axis {beyond[0].axis} takes from every block; leave out one of the two"
        )
    kept_whole = {block.units.name for block in anatomy.blocks if any(_fits(pattern, block) for pattern in keep)}
    least = {}
    for group in anatomy.groups:
        whole = (axes is not None and group.axis not in axes) or group.name in kept_whole
        count = floor if isinstance(floor, int) else floor.get(group.name, 0)
        if not isinstance(count, int) or count < 0:
            raise InputError(f"floor={count!r} must not be negative, and a number of units")
        step = granule(group, multiple_of)
        count = max(count, group.least)
        least[group.name] = group.size if whole else min(-(-count // step) * step, group.size)
    return least


def granule(group: UnitGroup, multiple_of: int) -> int:
    """Units by which a group may shrink so that its channels stay a multiple of `multiple_of`."""
    if not isinstance(multiple_of, int) or multiple_of < 1:
        raise InputError(f"multiple_of={multiple_of!r} must be 1 or more")
    if group.axis == "tokens":  # which are no channels
        return 1
    return multiple_of // math.gcd(multiple_of, group.width)


def _check_axes(anatomy: Anatomy, axes: Sequence[str] | None) -> None:
    known = sorted({group.axis for group in anatomy.groups})
    for axis in axes or ():
        if axis not in known:
            raise InputError(f"axis {axis!r}: the model has {', '.join(known)}")


def _fits(pattern: str, block: Block) -> bool:
    paths = {block.units.name, block.projection, *(cut.module for cut in block.cuts)}
    return any(fnmatchcase(path, pattern) or fnmatchcase(path, f"*.{pattern}") for path in paths)
