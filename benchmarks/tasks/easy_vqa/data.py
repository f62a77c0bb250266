"""The images, questions and answers of the package easy-vqa as tensors.

Tokens are words. Every question has nine, filled up with question marks: BLIP's decoder would see padding whatever the
mask says (transformers 5.23), so that an answer would depend on the batch.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.tasks.task import DataError

SIDE = 64
PAD, BEGIN, END = 0, 1, 2
COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SHAPES = ("circle", "rectangle", "triangle")
ANSWERS = (*COLOURS, *SHAPES, "no", "yes")
_OTHERS = "? a color contain does image in is not of present shape the there what"
VOCABULARY = ("[pad]", "[begin]", "[end]", *ANSWERS, *_OTHERS.split())
NUMBER = {word: number for number, word in enumerate(VOCABULARY)}
QUESTION_TOKENS = 9
# The package's own split is train and test; dev is one in ten images of its train.
SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class Data:
    """Images and the questions about them.

    - `numbers` `[I]` int64 are the files' names; `images` `[I, 3, 64, 64]` fp32 in [-1, 1];
    - `questions` `[S, 9]` int64, each about the image `about` `[S]`;
    - `answers` `[S]` int64: a token.
    """

    numbers: torch.Tensor
    images: torch.Tensor
    questions: torch.Tensor
    about: torch.Tensor
    answers: torch.Tensor

    @property
    def counts(self) -> torch.Tensor:
        """`[I]`: questions about each image."""
        return torch.bincount(self.about, minlength=len(self.images))

    @property
    def sha256(self) -> str:
        digest = hashlib.sha256()
        for tensor in (self.numbers, self.images, self.questions, self.about, self.answers):
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()


def found() -> Path:
    """The data's folder in the installed package. Raises DataError."""
    spec = importlib.util.find_spec("easy_vqa")
    if spec is None or not spec.submodule_search_locations:
        raise DataError("easy_vqa needs the package easy-vqa: pip install --no-deps easy-vqa==1.0")
    return Path(spec.submodule_search_locations[0]) / "data"


def read(folder: Path) -> dict[str, Data]:
    """The splits by name. Images that nothing is asked about are left out. Raises DataError."""
    asked: dict[str, dict[int, list[tuple[str, str]]]] = {split: {} for split in SPLITS}
    for part in ("train", "test"):
        for question, answer, number in _questions(folder / part / "questions.json"):
            split = split_of(number) if part == "train" else part
            asked[split].setdefault(number, []).append((question, answer))
    if missing := [split for split, own in asked.items() if not own]:
        raise DataError(f"{folder}: no question is asked about an image of {', '.join(missing)}")
    parts = {"train": "train", "dev": "train", "test": "test"}
    return {split: _data(folder / parts[split] / "images", own) for split, own in asked.items()}


def split_of(number: int) -> str:
    """Of an image of the package's train: 90 / 10 by a hash."""
    return "dev" if zlib.crc32(f"image {number}".encode()) % 10 == 0 else "train"


def tokens(question: str) -> list[int]:
    """The words of a question as tokens. KeyError for a word that is not in the vocabulary."""
    words = question.lower().rstrip("?").split()
    return [NUMBER[word] for word in [*words, *["?"] * (QUESTION_TOKENS - len(words))]]


def _questions(path: Path) -> list[tuple[str, str, int]]:
    try:
        rows = [(str(question), str(answer), int(number)) for question, answer, number in json.loads(path.read_text())]
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path}: expected a list of questions, answers and numbers of images ({error})") from None
    for question, answer, _ in rows:
        words = question.lower().rstrip("?").split()
        if answer not in ANSWERS or not set(words) <= NUMBER.keys() or len(words) > QUESTION_TOKENS:
            raise DataError(f"{path}: the task cannot read {question!r} with the answer {answer!r}")
    return rows


def _data(folder: Path, asked: dict[int, list[tuple[str, str]]]) -> Data:
    numbers = sorted(asked)
    rows = [(i, *pair) for i, number in enumerate(numbers) for pair in asked[number]]
    return Data(
        numbers=torch.tensor(numbers, dtype=torch.int64),
        images=torch.from_numpy(np.stack([_pixels(folder / f"{number}.png") for number in numbers])),
        questions=torch.tensor([tokens(question) for _, question, _ in rows]),
        about=torch.tensor([i for i, _, _ in rows]),
        answers=torch.tensor([NUMBER[answer] for _, _, answer in rows]),
    )


def _pixels(path: Path) -> np.ndarray:
    """`[3, 64, 64]` fp32 in [-1, 1]. Raises DataError."""
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"), np.float32)
    except OSError as error:
        raise DataError(f"{path}: not an image that can be read ({error})") from None
    if pixels.shape != (SIDE, SIDE, 3):
        raise DataError(f"{path}: expected 64 x 64 pixels, found {pixels.shape[1]} x {pixels.shape[0]}")
    return pixels.transpose(2, 0, 1) / np.float32(127.5) - 1
