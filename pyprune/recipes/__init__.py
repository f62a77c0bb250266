"""Published systems as compositions of stages. One file per system."""

from pyprune.recipes.kwon import Kwon
from pyprune.recipes.registry import RECIPES, Recipe

__all__ = ["RECIPES", "Kwon", "Recipe"]
