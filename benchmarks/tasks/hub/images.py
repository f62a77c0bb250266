"""Tasks of images, and of images with text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.tasks.hub import metrics
from benchmarks.tasks.hub.base import HubTask, Inputs, Row, Sample, Writer, batches, on
from benchmarks.tasks.task import DataError


def _check_class(task: HubTask, found: int) -> None:
    """Raise DataError for a class that the model does not have."""
    classes = task.model.config.num_labels
    if found >= classes:
        raise DataError(f"{task.name}: an image is of class {found}, and {task.checkpoint} has {classes} classes")


class ImageClassification(HubTask):
    """`image` and its class `label`, in the order of the model's outputs."""

    def samples(self, rows: Iterable[Row]) -> Iterator[Sample]:
        for row in rows:
            _check_class(self, row["label"])
            yield {"pixel_values": self.pixels([row["image"]])["pixel_values"][0]}, row["label"]

    def predict(self, model: nn.Module, inputs: Inputs, truths: Sequence[int]) -> list[int]:
        return model(**inputs).logits.argmax(-1).tolist()

    def score(self, answers: Sequence[int], truths: Sequence[int]) -> float:
        return metrics.accuracy(answers, truths)

    def labelled(self, inputs: Inputs, truth: int) -> dict[str, Any]:
        return {**inputs, "label": truth}


class Segmentation(HubTask):
    """`image` and its `annotation`, a map of classes from 1 on; pixels of 0 do not count."""

    batch = 8

    def samples(self, rows: Iterable[Row]) -> Iterator[Sample]:
        for row in rows:
            true = torch.from_numpy(np.array(row["annotation"], dtype=np.int64)) - 1
            _check_class(self, int(true.max()))
            yield {"pixel_values": self.pixels([row["image"]])["pixel_values"][0]}, true

    def predict(self, model: nn.Module, inputs: Inputs, truths: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """`metrics.overlaps` of each image, at the size of its annotation."""
        sizes = [tuple(true.shape) for true in truths]
        found = self.processor.post_process_semantic_segmentation(model(**inputs), target_sizes=sizes)
        classes = self.model.config.num_labels
        return [metrics.overlaps(f.cpu(), true, classes) for f, true in zip(found, truths, strict=True)]

    def score(self, answers: Sequence[torch.Tensor], truths: Sequence[torch.Tensor]) -> float:
        return metrics.mean_iou(sum(answers))


class VisualQuestions(Writer):
    """`image`, `question` and the `answers` of people. GIT's question is the beginning of its text, without an end."""

    def samples(self, rows: Iterable[Row]) -> Iterator[Sample]:
        for row in rows:
            answers = [a["answer"] if isinstance(a, Mapping) else a for a in row["answers"]]
            inputs = {"pixel_values": self.pixels([row["image"]])["pixel_values"][0]}
            yield {**inputs, "input_ids": self._tokens(row["question"], open_end=self.prompted)}, answers

    def _tokens(self, text: str, open_end: bool) -> torch.Tensor:
        cut = {"truncation": True, "max_length": self.entry.length - open_end}
        ids = self.tokenizer(text, add_special_tokens=not open_end, **cut)["input_ids"]
        first = self.tokenizer.cls_token_id if self.tokenizer.cls_token_id is not None else self.tokenizer.bos_token_id
        return torch.tensor([first, *ids] if open_end else ids)

    def score(self, answers: Sequence[str], truths: Sequence[Sequence[str]]) -> float:
        figure = metrics.vqa_accuracy if self.metric == "VQA accuracy" else metrics.any_match
        return fmean(map(figure, answers, truths))

    def recovery(self, samples: int, seed: int, labels: bool = False) -> list[Any]:
        """With the dense model's answers behind the questions where they are one text: these are what is learned."""
        rows = super().recovery(samples, seed, labels)
        if not self.prompted:
            return rows
        answered = []
        with torch.inference_mode():
            for inputs, own in batches(((row, row) for row in rows), self.batch):
                for row, said in zip(own, self.written(self.model, on(self.model, inputs)).cpu(), strict=True):
                    real = said[said != self.tokenizer.pad_token_id]
                    answered.append({**row, "input_ids": torch.cat([row["input_ids"], real])})
        return answered


class Captions(Writer):
    """`image` and its `captions`; the model writes its own."""

    def samples(self, rows: Iterable[Row]) -> Iterator[Sample]:
        for row in rows:
            yield {"pixel_values": self.pixels([row["image"]])["pixel_values"][0]}, row["captions"]

    def score(self, answers: Sequence[str], truths: Sequence[Sequence[str]]) -> float:
        return metrics.cider_d(answers, truths)


class Retrieval(HubTask):
    """`image` and its `captions`, in a model that embeds both. The first caption is the text that calibrates."""

    def samples(self, rows: Iterable[Row]) -> Iterator[Sample]:
        cut = {"truncation": True, "max_length": self.entry.length}
        for row in rows:
            texts = [torch.tensor(self.tokenizer(text, **cut)["input_ids"]) for text in row["captions"]]
            image = self.pixels([row["image"]])["pixel_values"][0]
            yield {"pixel_values": image, "input_ids": texts[0]}, texts

    def predict(
        self, model: nn.Module, inputs: Inputs, truths: Sequence[list[torch.Tensor]]
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Embeddings of each image, `[d]`, and of its captions, `[C, d]`."""
        images = _embedded(model.get_image_features(pixel_values=inputs["pixel_values"]))
        flat = [({"input_ids": text}, i) for i, texts in enumerate(truths) for text in texts]
        own: list[list[torch.Tensor]] = [[] for _ in truths]
        for batch, places in batches(flat, 8 * self.batch):
            for i, text in zip(places, _embedded(model.get_text_features(**on(model, batch))), strict=True):
                own[i].append(text)
        return [(image, torch.stack(texts)) for image, texts in zip(images, own, strict=True)]

    def score(self, answers: Sequence[tuple[torch.Tensor, torch.Tensor]], truths: Sequence[Any]) -> float:
        images, texts = zip(*answers, strict=True)
        about = torch.arange(len(images)).repeat_interleave(torch.tensor([len(own) for own in texts]))
        return metrics.recall_at_1(torch.stack(images), torch.cat(texts), about)


def _embedded(found: Any) -> torch.Tensor:
    """`[B, d]` of L2 norm 1, on the CPU."""
    return F.normalize(getattr(found, "pooler_output", found).float(), dim=-1).cpu()


class ImagePairs(HubTask):
    """Whether a sentence, `text`, is true of the images `left` and `right` together; `label` is True or False."""

    batch = 16

    def samples(self, rows: Iterable[Row]) -> Iterator[Sample]:
        for row in rows:
            ids = self.tokenizer(row["text"], truncation=True, max_length=self.entry.length)["input_ids"]
            seen = self.pixels([row["left"], row["right"]])  # padded to the larger of the two
            images = {name: torch.as_tensor(seen[name]) for name in ("pixel_values", "pixel_mask") if name in seen}
            yield {"input_ids": torch.tensor(ids), **images}, int(row["label"] in (True, "True", "true"))

    def predict(self, model: nn.Module, inputs: Inputs, truths: Sequence[int]) -> list[int]:
        return model(**inputs).logits.argmax(-1).tolist()

    def score(self, answers: Sequence[int], truths: Sequence[int]) -> float:
        return metrics.accuracy(answers, truths)

    def row(self, inputs: Inputs) -> Inputs:
        """As a batch of one: two images would be taken for two samples."""
        return {name: tensor[None] for name, tensor in inputs.items()}

    def labelled(self, inputs: Inputs, truth: int) -> dict[str, Any]:
        return {**self.row(inputs), "label": torch.tensor([truth])}
