"""Criteria: what a unit is worth. One file per criterion or family of criteria, each registered by name."""

from pyprune.importance import fisher, flap, magnitude, minitron, random, taylor, wanda_sp
from pyprune.importance.registry import CRITERIA

__all__ = ["CRITERIA", "fisher", "flap", "magnitude", "minitron", "random", "taylor", "wanda_sp"]
