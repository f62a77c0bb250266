"""Scenes as tensors: token ids, features and boxes, as detectors put them out, and answers as tokens.

Tokens up to `len(VOCABULARY)` are words; the token `len(VOCABULARY) + j` is the j-th OCR token of the scene.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F

from benchmarks.tasks.scene_text_vqa.scenes import (
    COLOURS,
    COMMON,
    KINDS,
    MOST_WORDS,
    QUESTION_WORDS,
    SIGNS,
    Scene,
    scene,
)

PAD, BEGIN, END = 0, 1, 2
VOCABULARY = ("[pad]", "[begin]", "[end]", *dict.fromkeys((*QUESTION_WORDS, *COLOURS, *KINDS, *COMMON)))
NUMBER = {word: number for number, word in enumerate(VOCABULARY)}
OBJECTS = SIGNS[1]
OCR_TOKENS = MOST_WORDS * OBJECTS
QUESTION_TOKENS = 10
STEPS = 12
LOOK_FEATURES, WORD_FEATURES = 32, 64
OCR_FEATURES = WORD_FEATURES + LOOK_FEATURES
NOISE = 0.2

Row = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Data:
    """A split as tensors, padded: boxes of padding are 0.

    - `questions` `[S, 10]` int64; `objects` `[S, 5, 32]`, `object_boxes` `[S, 5, 4]`;
    - `ocr` `[S, 20]` int64, rows of `words` `[W, 64]`, the features of all that was read; `ocr_looks` `[S, 20, 32]`,
      what the detector sees around them, the sign; `ocr_boxes` `[S, 20, 4]`;
    - `targets` `[S, 5]` int64: the answer's tokens and the end; words that were not read are left out;
    - `reads[s]` and `answers[s]` are the OCR tokens as text and the right answer.
    """

    questions: torch.Tensor
    objects: torch.Tensor
    object_boxes: torch.Tensor
    ocr: torch.Tensor
    words: torch.Tensor
    ocr_looks: torch.Tensor
    ocr_boxes: torch.Tensor
    targets: torch.Tensor
    reads: list[tuple[str, ...]]
    answers: list[str]

    def __len__(self) -> int:
        return len(self.answers)

    @property
    def lengths(self) -> torch.Tensor:
        """`[S]`: tokens of question, objects, OCR and answer together."""
        boxes = [self.object_boxes[..., 2] > 0, self.ocr_boxes[..., 2] > 0]
        return sum(real.sum(1) for real in [self.questions != PAD, *boxes, self.targets != PAD])

    @property
    def sha256(self) -> str:
        digest = hashlib.sha256("\n".join(self.answers).encode())
        for tensor in (
            self.questions,
            self.objects,
            self.object_boxes,
            self.ocr,
            self.ocr_looks,
            self.ocr_boxes,
            self.targets,
        ):
            digest.update((tensor * 1000).round().long().numpy().tobytes())
        return digest.hexdigest()

    def batch(self, index: torch.Tensor) -> Row:
        """The model's inputs `[B, ...]` for the samples `index` `[B]`, without the answers; no wider than needed."""
        questions, boxes, read = self.questions[index], self.object_boxes[index], self.ocr_boxes[index]
        q, o, n = (int(real.sum(1).max()) for real in (questions != PAD, boxes[..., 2] > 0, read[..., 2] > 0))
        return {
            "input_ids": questions[:, :q],
            "objects": self.objects[index][:, :o],
            "object_boxes": boxes[:, :o],
            "ocr": torch.cat([self.words[self.ocr[index]], self.ocr_looks[index]], -1)[:, :n],
            "ocr_boxes": read[:, :n],
        }

    def row(self, s: int, labels: bool) -> Row:
        """Sample `s` without padding; with `labels` the answer's tokens."""
        found = {name: tensor[0] for name, tensor in self.batch(torch.tensor([s])).items()}
        return found | ({"labels": self.targets[s][self.targets[s] != PAD]} if labels else {})

    def text(self, s: int, tokens: Sequence[int]) -> str:
        """What `tokens` say of sample `s`, up to the end token."""
        said = []
        for token in tokens:
            if token == END:
                break
            place = token - len(VOCABULARY)
            said.append(VOCABULARY[token] if place < 0 else (*self.reads[s], *[""] * OCR_TOKENS)[place])
        return " ".join(said)


def data(split: str, numbers: Sequence[int]) -> Data:
    """The scenes of these numbers of a split; a scene does not depend on which others there are."""
    scenes = [scene(split, number) for number in numbers]
    texts = sorted({seen.text for s in scenes for seen in s.ocr})
    number = {text: n for n, text in enumerate(texts)}
    looks = [[_look(sign.colour, sign.kind) for sign in s.signs] for s in scenes]
    around = [[of_scene[seen.place[0]] for seen in s.ocr] for s, of_scene in zip(scenes, looks, strict=True)]
    noise = [_noise(f"{split} {n}") for n in numbers]
    return Data(
        questions=_ids([[NUMBER[word] for word in s.question.split()] for s in scenes], QUESTION_TOKENS),
        objects=_padded(looks, OBJECTS, LOOK_FEATURES) + NOISE * torch.stack([of_objects for of_objects, _ in noise]),
        object_boxes=_padded([[sign.box for sign in s.signs] for s in scenes], OBJECTS, 4),
        ocr=_ids([[number[seen.text] for seen in s.ocr] for s in scenes], OCR_TOKENS),
        words=torch.stack([word_features(text) for text in texts]),
        ocr_looks=_padded(around, OCR_TOKENS, LOOK_FEATURES) + NOISE * torch.stack([of_ocr for _, of_ocr in noise]),
        ocr_boxes=_padded([[seen.box for seen in s.ocr] for s in scenes], OCR_TOKENS, 4),
        targets=_ids([answer_tokens(s) for s in scenes], MOST_WORDS + 1),
        reads=[tuple(seen.text for seen in s.ocr) for s in scenes],
        answers=[s.answer_text for s in scenes],
    )


def answer_tokens(s: Scene) -> list[int]:
    """The answer as tokens, the end token last: a word of the vocabulary as such, else the OCR token that shows it."""
    places = {seen.place: number for number, seen in enumerate(s.ocr)}
    tokens = [
        NUMBER.get(word, len(VOCABULARY) + places[place] if place in places else None) for word, place in s.answer
    ]
    return [*(token for token in tokens if token is not None), END]


@cache
def word_features(text: str) -> torch.Tensor:
    """`[64]`: letters, pairs and triples of letters, hashed, of norm 1: words that look alike are alike."""
    features = [0.0] * WORD_FEATURES
    framed = f"<{text}>"
    for size in (1, 2, 3):
        for start in range(len(framed) - size + 1):
            code = zlib.crc32(framed[start : start + size].encode())
            features[code % WORD_FEATURES] += 1.0 if code & 1024 else -1.0
    return F.normalize(torch.tensor(features), dim=0)


@cache
def _look(colour: str, kind: str) -> list[float]:
    """32 numbers: a random direction for the colour and one for the kind."""
    return [*_direction(colour).tolist(), *_direction(kind).tolist()]


def _noise(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the features of objects and of OCR tokens."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    shapes = (OBJECTS, LOOK_FEATURES), (OCR_TOKENS, LOOK_FEATURES)
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


@cache
def _direction(word: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(word.encode()))
    return F.normalize(torch.randn(LOOK_FEATURES // 2, generator=generator), dim=0) * 2


def _ids(rows: Sequence[Sequence[int]], width: int) -> torch.Tensor:
    return torch.tensor([[*row, *[PAD] * (width - len(row))] for row in rows])


def _padded(rows: Sequence[Sequence[Sequence[float]]], count: int, width: int) -> torch.Tensor:
    absent = (0.0,) * width
    return torch.tensor([[*row, *[absent] * (count - len(row))] for row in rows])
