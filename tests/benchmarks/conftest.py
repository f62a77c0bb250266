"""The benchmarks are scripts of the repository, not of the installed package: tests find them at its root."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """A second thread costs a tiny model more than it gives."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
