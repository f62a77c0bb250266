"""Criteria: what a unit is worth. One file per criterion, each registered by name."""

from pyprune.importance import fisher, magnitude, random
from pyprune.importance.registry import CRITERIA

__all__ = ["CRITERIA", "fisher", "magnitude", "random"]
