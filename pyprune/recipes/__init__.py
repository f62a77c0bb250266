"""Published systems as compositions of stages, one file per system, and pyprune's own default."""

from pyprune.recipes.flap import Flap
from pyprune.recipes.kprune import KPrune
from pyprune.recipes.kwon import Kwon
from pyprune.recipes.lfpr import LFPR
from pyprune.recipes.llm_pruner import LLMPruner
from pyprune.recipes.optin import OPTIN
from pyprune.recipes.registry import RECIPES, BlockwiseRecipe, Recipe
from pyprune.recipes.surgeon import Surgeon

__all__ = ["LFPR", "OPTIN", "RECIPES", "BlockwiseRecipe", "Flap", "KPrune", "Kwon", "LLMPruner", "Recipe", "Surgeon"]
