"""Triton kernels, one file per op: kernels, launcher, `supports()` and the specialisations that are compiled ahead of
time.
"""

# Arguments that say how many there are of something. They change from batch to batch and no vector load depends on
# them, but Triton would compile a kernel anew whenever one of them becomes 1, or a multiple of 16, or ceases to be one.
COUNTS = ("samples", "slots", "tokens", "probes", "rows", "chunks", "span", "splits", "blocks")
