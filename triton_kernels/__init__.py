"""Triton kernels, one file per op: kernels, launcher, `supports()` and the specialisations that are compiled ahead of
time.
"""
