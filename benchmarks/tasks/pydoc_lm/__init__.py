"""Language modelling of CPython's documentation: the prose that it ships, and the docstrings of its library."""
