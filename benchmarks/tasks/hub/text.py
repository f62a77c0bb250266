"""Tasks of text: classes, spans, texts for texts, and what comes next."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from statistics import fmean
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.tasks.hub import metrics
from benchmarks.tasks.hub.base import HubTask, Inputs, Row, Sample, Writer

# Characters that are tokenised at once: all of WikiText-2's test split, or 1,700 documents of C4.
_CHUNK = 4_000_000


class TextClassification(HubTask):
    """`text`, and `pair` where there is one; `label` is a class, or a value for a model of one output."""

    def samples(self, rows: Iterable[Row]) -> Iterator[Sample]:
        for row in rows:
            cut = {"truncation": True, "max_length": self.entry.length}
            encoded = self.tokenizer(row["text"], row.get("pair"), **cut)
            names = [name for name in ("input_ids", "token_type_ids") if name in encoded]
            yield {name: torch.tensor(encoded[name]) for name in names}, row["label"]

    def predict(self, model: nn.Module, inputs: Inputs, truths: Sequence[Any]) -> list[Any]:
        logits = model(**inputs).logits.float()
        return (logits[:, 0] if logits.shape[1] == 1 else logits.argmax(-1)).tolist()

    def score(self, answers: Sequence[Any], truths: Sequence[Any]) -> float:
        figures = {"Matthews correlation": metrics.matthews, "Spearman correlation": metrics.spearman}
        return figures.get(self.metric, metrics.accuracy)(answers, truths)

    def labelled(self, inputs: Inputs, truth: Any) -> dict[str, Any]:
        return {**inputs, "label": truth}


class Window(NamedTuple):
    """A part of a context: characters `places[t]` of the tokens that are of it (None: of no token), and the truth."""

    question: str
    context: str
    places: list[tuple[int, int] | None]
    answers: dict[str, list[Any]]


class SpanAnswers(HubTask):
    """SQuAD. The answer is the best of all spans, where the usual evaluation takes 20 starts and 20 ends."""

    def samples(self, rows: Iterable[Row]) -> Iterator[Sample]:
        for row in rows:
            encoded = self.tokenizer(
                row["question"].strip(),
                row["context"],
                truncation="only_second",
                max_length=self.entry.length,
                stride=self.entry.options["stride"],
                return_overflowing_tokens=True,
                return_offsets_mapping=True,
            )
            for i, offsets in enumerate(encoded["offset_mapping"]):
                places = [p if s == 1 else None for p, s in zip(offsets, encoded.sequence_ids(i), strict=True)]
                names = [name for name in ("input_ids", "token_type_ids") if name in encoded]
                inputs = {name: torch.tensor(encoded[name][i]) for name in names}
                yield inputs, Window(row["id"], row["context"], places, row["answers"])

    def predict(self, model: nn.Module, inputs: Inputs, truths: Sequence[Window]) -> list[tuple[float, str, float]]:
        """Of each window the best span's score and text, and the score of there being none."""
        outputs = model(**inputs)
        starts, ends = outputs.start_logits.float().cpu(), outputs.end_logits.float().cpu()
        inside = torch.tensor([[place is not None for place in window.places] for window in truths])
        length = torch.arange(inside.shape[1])[None] - torch.arange(inside.shape[1])[:, None]
        spans = (length >= 0) & (length < self.entry.options["longest"]) & inside[:, None] & inside[:, :, None]
        scores = (starts[:, :, None] + ends[:, None]).masked_fill(~spans, -torch.inf).flatten(1)
        found = []
        for window, own, best, none in zip(
            truths, scores, scores.argmax(1).tolist(), starts[:, 0] + ends[:, 0], strict=True
        ):
            first, last = (window.places[t] for t in divmod(best, len(window.places)))
            text = window.context[first[0] : last[1]] if first and last else ""
            found.append((float(own[best]), text, float(none)))
        return found

    def score(self, answers: Sequence[tuple[float, str, float]], truths: Sequence[Window]) -> float:
        """F1 in the mean over questions; nothing is answered where that scores higher in a question's every window."""
        windows, true = defaultdict(list), {}
        for answer, window in zip(answers, truths, strict=True):
            windows[window.question].append(answer)
            true[window.question] = window.answers["text"] or [""]
        figures = []
        for question, own in windows.items():
            best, text, _ = max(own)
            none = min(score for *_, score in own)
            answered = not self.entry.options["null"] or best >= none
            figures.append(metrics.squad_f1(text if answered else "", true[question]))
        return fmean(figures)

    def labelled(self, inputs: Inputs, truth: Window) -> dict[str, Any]:
        """Start and end of the first answer; both are the first token where the window does not hold it whole."""
        span = [0, 0]
        if truth.answers["text"]:
            first = truth.answers["answer_start"][0]
            last = first + len(truth.answers["text"][0])
            inside = [t for t, p in enumerate(truth.places) if p is not None]
            starts = [t for t in inside if truth.places[t][0] <= first < truth.places[t][1]]
            ends = [t for t in inside if truth.places[t][0] < last <= truth.places[t][1]]
            span = [starts[0], ends[-1]] if starts and ends else span
        return {**inputs, "labels": span}


class TextToText(Writer):
    """The template's words about the row; the answer is `answers`, or the word of the `label`."""

    def samples(self, rows: Iterable[Row]) -> Iterator[Sample]:
        for row in rows:
            text = self.entry.options["template"].format(**row)
            ids = self.tokenizer(text, truncation=True, max_length=self.entry.length)["input_ids"]
            truths = row["answers"]["text"] if "answers" in row else [self.entry.options["words"][row["label"]]]
            yield {"input_ids": torch.tensor(ids)}, truths

    def score(self, answers: Sequence[str], truths: Sequence[Sequence[str]]) -> float:
        figure = metrics.squad_f1 if self.metric == "F1" else metrics.squad_exact
        return fmean(map(figure, answers, truths))

    def labelled(self, inputs: Inputs, truth: Sequence[str]) -> dict[str, Any]:
        return {**inputs, "labels": torch.tensor(self.tokenizer(text_target=truth[0])["input_ids"])}


class LanguageModel(HubTask):
    """Blocks of one long text; each token but a block's first is predicted from those before it."""

    batch = 4  # logits of a block over a large vocabulary take 0.25 GiB
    dtype = "auto"

    def samples(self, rows: Iterable[Row]) -> Iterator[Sample]:
        positions = getattr(self.model.config, "max_position_embeddings", None) or self.entry.length
        size, rows = min(self.entry.length, positions), iter(rows)
        while text := self._chunk(rows):
            ids = torch.tensor(self.tokenizer(text, verbose=False)["input_ids"])
            yield from (({"input_ids": block}, None) for block in ids[: len(ids) // size * size].view(-1, size))

    def _chunk(self, rows: Iterator[Row]) -> str:
        texts, characters = [], 0
        for row in rows:
            texts.append(row["text"])
            characters += len(row["text"])
            if characters >= _CHUNK:
                break
        return self.entry.options["between"].join(texts)

    def tested(self) -> Iterator[Sample]:
        return islice(self.samples(self.stream("test")), self.limit)

    def predict(self, model: nn.Module, inputs: Inputs, truths: Sequence[Any]) -> list[tuple[float, int]]:
        """The negative log-likelihood of each block, and its tokens."""
        logits, tokens = model(**inputs).logits[:, :-1].float(), inputs["input_ids"][:, 1:]
        losses = F.cross_entropy(logits.transpose(1, 2), tokens, reduction="none").double().sum(1)
        return [(loss, tokens.shape[1]) for loss in losses.tolist()]

    def score(self, answers: Sequence[tuple[float, int]], truths: Sequence[Any]) -> float:
        losses, tokens = zip(*answers, strict=True)
        return math.exp(sum(losses) / sum(tokens))

    def labelled(self, inputs: Inputs, truth: Any) -> dict[str, Any]:
        """A text is its own label."""
        return inputs
