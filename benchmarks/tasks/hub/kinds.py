"""Which class reads a kind of task, and the tasks by their names."""

from __future__ import annotations

from benchmarks.tasks.hub import images, text
from benchmarks.tasks.hub.base import HubTask
from benchmarks.tasks.hub.entries import ENTRIES
from benchmarks.tasks.task import DataError

KINDS: dict[str, type[HubTask]] = {
    "text classification": text.TextClassification,
    "span answers": text.SpanAnswers,
    "text to text": text.TextToText,
    "language model": text.LanguageModel,
    "image classification": images.ImageClassification,
    "segmentation": images.Segmentation,
    "visual questions": images.VisualQuestions,
    "captions": images.Captions,
    "retrieval": images.Retrieval,
    "image pairs": images.ImagePairs,
}


def find(name: str, model: str | None = None, samples: int | None = None, device: str = "cpu") -> HubTask:
    """The task called `name`. Raises DataError when there is none of this name, or its data cannot be had."""
    if name not in ENTRIES:
        raise DataError(f"--task {name}: with --hub choose one of {', '.join(ENTRIES)}")
    if samples is not None and samples < 1:
        raise DataError(f"--hub-samples {samples}: expected at least 1")
    return KINDS[ENTRIES[name].kind](name, ENTRIES[name], model, samples, device)
