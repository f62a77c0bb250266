"""Which units stay under a budget. One file per solver."""

from pyprune.search.joint import search_jointly
from pyprune.search.knapsack import knapsack, unit_prices
from pyprune.search.rearrange import rearrange
from pyprune.search.separable import search

__all__ = ["knapsack", "rearrange", "search", "search_jointly", "unit_prices"]
