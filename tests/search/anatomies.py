"""Made-up anatomies: groups of any size and cost, with no model behind them."""

from pyprune.core.anatomy import Anatomy, Block
from pyprune.core.units import UnitCost, UnitGroup


def anatomy(*groups):
    """An anatomy of `(name, size, params, attention)` groups."""
    blocks = []
    for layer, (name, size, params, attention) in enumerate(groups):
        units = UnitGroup(name, "heads" if attention else "neurons", layer, size, 1, (), UnitCost(params, attention))
        blocks.append(Block(f"layers.{layer}", f"layers.{layer}.out", (), (), units))
    return Anatomy("made-up", tuple(f"layers.{i}" for i in range(len(groups))), tuple(blocks))
