"""What all tasks of a hub share: streams of rows, batches without padding, the dense model as it was published."""

from __future__ import annotations

import inspect
import zlib
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from benchmarks.tasks.hub import source
from benchmarks.tasks.hub.entries import Entry
from benchmarks.tasks.task import CACHE, DataError, Dense, Task

Inputs = dict[str, torch.Tensor]
Sample = tuple[Inputs, Any]  # a sample's inputs, without a batch, and what its answer is compared with
Row = dict[str, Any]

# Of the samples among which the one for timing has the middle size.
_TIMED = 33
# Batches' worth of samples that wait for others of their shapes.
_WAITING = 8


class HubTask(Task):
    """`model` takes the place of the entry's; `samples` limits the rows (of language models: the blocks) of the test.

    Both splits are looked into at once: DataError when they cannot be had.
    """

    batch = 32
    dtype = "float32"

    def __init__(
        self, name: str, entry: Entry, model: str | None = None, samples: int | None = None, device: str = "cpu"
    ) -> None:
        self.name, self.entry, self.metric, self.device = name, entry, entry.metric, device
        self.limit = samples or entry.samples
        if model is None and entry.model is None:
            raise DataError(f"{name}: there is no checkpoint that everyone uses; give one for its classes, --model ID")
        self.checkpoint = model or entry.model
        self.revision = source.revision_of(entry.test.dataset, entry.test.revision)
        for split in ("train", "test"):
            if next(self.stream(split), None) is None:
                raise DataError(f"{name}: its {split} split has no rows")

    @abstractmethod
    def samples(self, rows: Iterable[Row]) -> Iterator[Sample]:
        """What the model sees of rows whose columns have the kind's own names."""

    @abstractmethod
    def predict(self, model: nn.Module, inputs: Inputs, truths: Sequence[Any]) -> Sequence[Any]:
        """An answer for each sample of a batch."""

    @abstractmethod
    def score(self, answers: Sequence[Any], truths: Sequence[Any]) -> float:
        """The metric over all samples, whatever their order."""

    def labelled(self, inputs: Inputs, truth: Any) -> dict[str, Any]:
        """A row with its label, as `pyprune` takes it."""
        raise DataError(f"{self.name}: calibration with labels is not for {self.entry.kind}")

    @cached_property
    def _pretrained(self) -> tuple[nn.Module, Any]:
        model, processor = source.from_pretrained(self.checkpoint, self.dtype)
        return model.to(self.device), processor

    @property
    def model(self) -> nn.Module:
        """The dense model."""
        return self._pretrained[0]

    @property
    def processor(self) -> Any:
        return self._pretrained[1]

    @property
    def tokenizer(self) -> Any:
        """Of what reads text; None for images alone."""
        found = getattr(self.processor, "tokenizer", self.processor)
        return found if hasattr(found, "pad_token_id") else None

    def pixels(self, images: Any) -> Mapping[str, torch.Tensor]:
        """What the model's processor makes of PIL images."""
        images = [image.convert("RGB") for image in images]
        return getattr(self.processor, "image_processor", self.processor)(images=images, return_tensors="pt")

    @property
    def takes(self) -> Mapping[str, Any]:
        """The arguments of the model."""
        return inspect.signature(self.model.forward).parameters

    def stream(self, split: str, seed: int | None = None) -> Iterator[Row]:
        """Rows of `train` or `test`, in the data's own order without a `seed`."""
        entry, own = self.entry, {"train": self.entry.train, "test": self.entry.test}[split]
        columns = list(entry.columns.values())
        for row in source.load_rows(own.dataset, own.config, own.split, columns, own.revision, seed):
            named = {role: row[column] for role, column in entry.columns.items()}
            held_out = entry.held_out and zlib.crc32(str(named[entry.held_out]).encode()) % 10 == 0
            if entry.held_out is None or held_out == (split == "test"):
                yield named

    def tested(self) -> Iterator[Sample]:
        """Samples of as many rows as are tested."""
        return self.samples(islice(self.stream("test"), self.limit))

    def dense(self, seed: int = 0, cache: Path = CACHE) -> Dense:
        """The published model: there is nothing to seed, and transformers has the cache."""
        commit = getattr(self.model.config, "_commit_hash", None) or "local"
        which = f"{self.checkpoint}@{commit[:8]} on {self.entry.test.dataset}@{self.revision[:8]}"
        limited = f", first {self.limit}" if self.limit else ""
        return Dense(self.model, {"key": which + limited, "metric": self.metric, "test": self.evaluate(self.model)})

    @torch.inference_mode()
    def evaluate(self, model: nn.Module, split: str = "test") -> float:
        """The metric on `test`, which is the only split that there is for it."""
        if split != "test":
            raise ValueError(f"split={split!r}: {self.name} is measured on 'test'")
        model.eval()
        answers: list[Any] = []
        truths: list[Any] = []
        with tqdm(desc=self.name, unit=" samples", mininterval=5) as bar:
            for inputs, own in batches(self.tested(), self.batch):
                answers += self.predict(model, on(model, inputs), own)
                truths += own
                bar.update(len(own))
        return float(self.score(answers, truths))

    def rows(self, labels: bool) -> list[Any]:
        """The whole training split, which `calibration` does not read."""
        return self._drawn(None, None, labels)

    def calibration(self, samples: int, seed: int, labels: bool = False) -> list[Any]:
        return self._drawn(samples, seed, labels)

    def _drawn(self, count: int | None, seed: int | None, labels: bool) -> list[Any]:
        drawn = islice(self.samples(self.stream("train", seed)), count)
        return [self.labelled(inputs, truth) if labels else self.row(inputs) for inputs, truth in drawn]

    def row(self, inputs: Inputs) -> Inputs:
        """Inputs as `pyprune` takes them."""
        return inputs

    def example(self, batch: int) -> Inputs:
        """The training sample of middle size, `batch` times."""
        found = [inputs for inputs, _ in islice(self.samples(self.stream("train", 0)), _TIMED)]
        middle = sorted(found, key=lambda inputs: sum(t.numel() for t in inputs.values()))[len(found) // 2]
        return {name: tensor.expand(batch, *tensor.shape).contiguous() for name, tensor in middle.items()}


class Writer(HubTask):
    """A task whose answers are texts that the model generates."""

    @property
    def prompted(self) -> bool:
        """Whether the answer goes on from the text that is given, in one sequence with it."""
        return "decoder_input_ids" not in self.takes

    def written(self, model: nn.Module, inputs: Inputs) -> torch.Tensor:
        """Tokens `[B, T]` that the model writes."""
        text = inputs.get("input_ids")
        mask = {} if text is None else {"attention_mask": torch.ones_like(text)}  # nothing is padding
        found = model.generate(**inputs, **mask, do_sample=False, **self.entry.generation)
        return found if text is None or not self.prompted else found[:, text.shape[1] :]

    def predict(self, model: nn.Module, inputs: Inputs, truths: Sequence[Any]) -> list[str]:
        return self.tokenizer.batch_decode(self.written(model, inputs), skip_special_tokens=True)

    def example(self, batch: int) -> Inputs:
        """With eight tokens of an answer where a model has to be given some."""
        inputs = super().example(batch)
        name = "input_ids" if self.prompted else "decoder_input_ids"
        return {name: torch.zeros(batch, 8, dtype=torch.int64), **inputs}


def on(model: nn.Module, inputs: Inputs) -> Inputs:
    """`inputs` on the device of `model`, and what is no whole number in its type."""
    first = next(model.parameters())
    return {n: t.to(first.device, first.dtype if t.is_floating_point() else None) for n, t in inputs.items()}


def batches(samples: Iterable[Sample], size: int) -> Iterator[tuple[Inputs, list[Any]]]:
    """Batches of samples of equal shapes: nothing is padded, so no answer depends on what else is in the batch.

    Samples wait for others of their shapes, but not more than eight batches of them.
    """
    groups: dict[Any, list[Sample]] = defaultdict(list)
    waiting = 0
    for inputs, truth in samples:
        shapes = tuple((name, tensor.shape) for name, tensor in inputs.items())
        groups[shapes].append((inputs, truth))
        waiting += 1
        if len(groups[shapes]) < size:
            if waiting < _WAITING * size:
                continue
            shapes = max(groups, key=lambda found: len(groups[found]))
        full = groups.pop(shapes)
        waiting -= len(full)
        yield _stacked(full)
    yield from map(_stacked, groups.values())


def _stacked(group: Sequence[Sample]) -> tuple[Inputs, list[Any]]:
    names = group[0][0]
    return {name: torch.stack([inputs[name] for inputs, _ in group]) for name in names}, [truth for _, truth in group]
