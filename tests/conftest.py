import gc
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def _one_thread():
    """The models are tiny: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# Files that take longest, though some hold few tests. Begun last, one of them would keep all but one process waiting.
LONGEST = (
    "kernels/test_triton.py",
    "benchmarks/test_gpu_check.py",
    "models/test_matrix.py",
    "models/test_head_dims.py",
    "formats/test_graphs.py",
    "models/test_hidden_axis.py",
    "recovery/test_retraining.py",
)


def pytest_collection_modifyitems(items):
    """The longest files first; the order inside each stays."""
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


def pytest_collection_finish():
    """What is there by now stays: collectors of garbage, which trainers call by themselves, need not look at it."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure():
    """Extension modules tell at the end what is never freed."""
    gc.unfreeze()
