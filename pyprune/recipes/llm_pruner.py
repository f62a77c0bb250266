"""LLM-Pruner (Ma, Fang, Wang: NeurIPS 2023): Taylor scores of all weights that go together.

Beyond the publication: no weight gradient is held in memory, query, key and value projections count too, an exact
budget over all blocks, and a least-squares refit where the publication trains adapters. `criterion` is `taylor`
(`vectorize`), `taylor_abs` (`param_first`), `taylor_sq` (`param_second`) or `taylor_mix` (`param_mix`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pyprune.recipes.oneshot import OneShot
from pyprune.recipes.registry import RECIPES


@RECIPES.register("llm_pruner")
@dataclass(frozen=True)
class LLMPruner(OneShot):
    """Settings: those of `OneShot`."""

    criterion: str = "taylor_abs"

    name: ClassVar[str] = "llm_pruner"
