"""The `pyprune` command: one module per verb."""

from pyprune.cli.app import main

__all__ = ["main"]
