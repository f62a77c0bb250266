"""Which units stay under a budget. One file per solver."""

from pyprune.search.joint import search_jointly
from pyprune.search.knapsack import knapsack, unit_prices
from pyprune.search.rearrange import rearrange
from pyprune.search.separable import search
from pyprune.search.vocabulary import check_vocabulary, search_vocabulary

__all__ = ["check_vocabulary", "knapsack", "rearrange", "search", "search_jointly", "search_vocabulary", "unit_prices"]
