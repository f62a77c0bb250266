"""The task for the runner: exact match of greedily decoded answers.

python -m benchmarks.tasks.run --task scene_text_vqa --dense      # trains the dense model
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.tasks.scene_text_vqa.features import (
    BEGIN,
    LOOK_FEATURES,
    OCR_FEATURES,
    OCR_TOKENS,
    PAD,
    STEPS,
    VOCABULARY,
    Data,
    data,
)
from benchmarks.tasks.scene_text_vqa.model import SceneTextModel, config
from benchmarks.tasks.task import TrainedTask
from benchmarks.tasks.training import Recipe, optimise

# Weights are spread by d**-0.5: BERT's own spread is for d = 768, and leaves the attention of narrow layers even.
SHAPE = {
    "num_hidden_layers": 4,
    "hidden_size": 256,
    "num_attention_heads": 8,
    "intermediate_size": 1024,
    "initializer_range": 256**-0.5,
}
RECIPE = Recipe(epochs=2.0, batch=32, lr=7e-4, weight_decay=0.01, warmup=0.05)


class SceneTextVQA(TrainedTask):
    """`train`, `dev` and `test` are numbers of scenes; `shape` changes the model's."""

    name = "scene_text_vqa"
    metric = "exact match"

    def __init__(
        self,
        train: int = 50_000,
        dev: int = 1_000,
        test: int = 2_000,
        recipe: Recipe | None = None,
        **shape: Any,
    ) -> None:
        self.counts = {"train": train, "dev": dev, "test": test}
        self.recipe, self.shape = recipe or RECIPE, {**SHAPE, **shape}
        self._made: dict[str, Data] = {}

    @property
    def settings(self) -> dict[str, Any]:
        """A few scenes stand for the generator: each depends on its split and number alone."""
        hashes = {split: data(split, range(100)).sha256 for split in ("train", "dev", "test")}
        return {"data": hashes, "counts": self.counts, "recipe": asdict(self.recipe), "shape": self.shape}

    @cached_property
    def length(self) -> float:
        """Mean tokens of question, objects, OCR and answer together: the whole sequence passes every layer."""
        return float(self._data("dev").lengths.double().mean())

    def _data(self, split: str) -> Data:
        if split not in self._made:
            self._made[split] = data(split, range(self.counts[split]))
        return self._made[split]

    def fresh(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        sizes = {"words": len(VOCABULARY), "objects": LOOK_FEATURES, "ocr": OCR_FEATURES, "ocr_tokens": OCR_TOKENS}
        return SceneTextModel(config(**sizes, steps=STEPS, **self.shape))

    def train(self, model: nn.Module, seed: int) -> None:
        split = self._data("train")

        def loss(index: torch.Tensor) -> torch.Tensor:
            targets = split.targets[index]
            targets = targets[:, : int((targets != PAD).sum(1).max())]
            said = F.pad(targets, (1, -1), value=BEGIN)
            logits = model(**split.batch(index), decoder_input_ids=said).logits
            return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=PAD)

        optimise(model, loss, split.lengths, self.recipe, seed)

    @torch.inference_mode()
    def evaluate(self, model: nn.Module, split: str = "test", batch: int = 250) -> float:
        """Share of scenes whose answer is right to the letter."""
        model.eval()
        device, own, right = next(model.parameters()).device, self._data(split), 0
        for index in torch.arange(len(own)).split(batch):
            inputs = {name: tensor.to(device) for name, tensor in own.batch(index).items()}
            for s, tokens in zip(index.tolist(), model.generate(**inputs)[:, 1:].tolist(), strict=True):
                right += own.text(s, tokens) == own.answers[s]
        return right / len(own)

    def rows(self, labels: bool) -> Sequence[Any]:
        return _Rows(self.counts["train"], labels)

    def example(self, batch: int) -> dict[str, torch.Tensor]:
        own = self._data("dev")
        inputs = own.batch(torch.arange(batch) % len(own))
        return {**inputs, "decoder_input_ids": torch.full((batch, STEPS), BEGIN)}


@dataclass(frozen=True)
class _Rows(Sequence):
    """The scenes of the training split, made when they are asked for."""

    total: int
    labels: bool

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, s: Any) -> Any:
        return data("train", [s]).row(0, self.labels)


TASK = SceneTextVQA
