"""FLAP (An, Zhao, Yu, Tang, Wang: AAAI 2024): forward passes only; what removed channels carried goes into biases.

Beyond the publication: exact variances over all tokens, an exact budget, and a least-squares refit in place of bias
compensation (`tuning="refit"`), also where projections have no bias. `criterion="wanda_sp"` and `"minitron"` are the
forward-only criteria of the same kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pyprune.recipes.oneshot import OneShot
from pyprune.recipes.registry import RECIPES


@RECIPES.register("flap")
@dataclass(frozen=True)
class Flap(OneShot):
    """Settings: those of `OneShot`."""

    criterion: str = "flap"
    tuning: str = "bias"

    name: ClassVar[str] = "flap"
