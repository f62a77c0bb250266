"""The task for the runner: MiniLM, fine-tuned to tell a package's section from its description."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.tasks.debian_sections import data
from benchmarks.tasks.debian_sections.evaluate import MAX_LENGTH, Encoded, accuracy, encode
from benchmarks.tasks.debian_sections.finetune import MINILM, Recipe, base_tokenizer, finetuned
from benchmarks.tasks.task import CACHE, Dense, Task


class DebianSections(Task):
    """`finetune.py` trains and caches the dense model; the tables over all methods are `accuracy.py`'s."""

    name = "debian_sections"

    def __init__(self, tsv: str | Path | None = None, base: str = MINILM, recipe: Recipe | None = None) -> None:
        self.data, self.base, self.recipe = data.load(tsv), base, recipe or Recipe()

    @cached_property
    def tokenizer(self) -> Any:
        return base_tokenizer(self.base)

    def dense(self, seed: int = 0, cache: Path = CACHE) -> Dense:
        """From the cache, or fine-tuned now. Raises PyPruneError when there is no such base model."""
        found = finetuned(self.data, self.base, replace(self.recipe, seed=seed), cache)
        report = {"dev": found.report["dev_accuracy"], "test": found.report["test_accuracy"]}
        return Dense(found.model, {**report, "seconds": found.report["seconds"], "key": found.directory.name})

    def evaluate(self, model: nn.Module, split: str = "test") -> float:
        return accuracy(model, self._encoded[split])

    def rows(self, labels: bool) -> list[Any]:
        return [(r.text, self.data.label(r)) if labels else r.text for r in self.data.train]

    def example(self, batch: int) -> dict[str, torch.Tensor]:
        ids = torch.arange(batch * MAX_LENGTH).remainder(len(self.tokenizer) - 1000) + 1000  # words, no special tokens
        return {"input_ids": ids.reshape(batch, MAX_LENGTH)}

    @cached_property
    def _encoded(self) -> dict[str, Encoded]:
        return {split: encode(getattr(self.data, split), self.data, self.tokenizer) for split in ("dev", "test")}


TASK = DebianSections
