"""The benchmarks are scripts of the repository, not of the installed package: tests find them at its root."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
