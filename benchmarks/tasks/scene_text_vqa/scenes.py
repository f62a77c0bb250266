"""Generated scenes: signs with text, what object and text detectors see of them, a question about one, its answer.

A scene has three to five signs in cells of a 3 x 3 grid. No two are alike in colour and kind; many share a kind, and in
some scenes two share their colour. Detectors put out noisy features of the signs, and the words in reading order over
the whole scene, with their boxes, some misspelt, some not at all. The answer is what really stands on the sign.

Words and layouts (which cells are taken) of the splits are disjoint. Only the words of `COMMON`, which the model can
write itself, stand on signs of all splits.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations

GRID = 3
SIGNS = (3, 5)
MOST_WORDS = 4
MISSPELT = 0.025
DROPPED = 0.01
COMMON_SHARE = 0.35
TWINS = 0.2  # of the scenes have two signs that only the kind tells apart
WORDS = 6000

COLOURS = ("red", "green", "blue", "yellow", "white", "black", "orange", "purple")
KINDS = ("sign", "board", "banner", "poster", "label", "plate")
COMMON = (
    *("open", "closed", "exit", "sale", "cafe", "stop", "north", "south", "street", "road", "park", "hotel"),
    *("bank", "bus", "taxi", "free", "new", "no", "one", "two", "three", "the", "of", "and"),
)
QUESTION_WORDS = (
    *("what", "does", "the", "say", "is", "first", "last", "word", "on", "written", "colour"),
    *("left", "right", "above", "below", "of"),
)
# Steps from a sign to its neighbour: column, row.
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Sign:
    """`words` are really there; `box` is x0, y0, x1, y1 in [0, 1], as all boxes are."""

    colour: str
    kind: str
    cell: tuple[int, int]
    box: Box
    words: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.colour} {self.kind}"


@dataclass(frozen=True)
class Read:
    """An OCR token: what was read, where; `place` is the sign and the word on it."""

    text: str
    box: Box
    place: tuple[int, int]


@dataclass(frozen=True)
class Scene:
    """`answer[i]` is a word and where it stands, as `Read.place` says it; None: not in the scene, but a colour."""

    signs: tuple[Sign, ...]
    ocr: tuple[Read, ...]
    question: str
    answer: tuple[tuple[str, tuple[int, int] | None], ...]

    @property
    def answer_text(self) -> str:
        return " ".join(word for word, _ in self.answer)


def split_of(text: str) -> str:
    """80 / 10 / 10 by a hash."""
    return ("train", "dev", "test")[max(0, zlib.crc32(text.encode()) % 10 - 7)]


@cache
def words_of(split: str) -> tuple[str, ...]:
    """The words, made of syllables, of one split's signs, besides `COMMON`."""
    rng = random.Random("words")
    made: dict[str, None] = {}
    while len(made) < WORDS:
        syllables = [
            "".join(rng.choice(part) for part in ("bdfgklmnprstvz", "aeiou")) for _ in range(rng.randint(1, 3))
        ]
        word = "".join(syllables) + rng.choice(("", "n", "r", "s", "t", "x"))
        if len(word) > 3:
            made[word] = None
    reserved = {*COMMON, *COLOURS, *KINDS, *QUESTION_WORDS}
    return tuple(word for word in made if word not in reserved and split_of(word) == split)


@cache
def layouts_of(split: str) -> tuple[tuple[tuple[int, int], ...], ...]:
    """The sets of cells of one split's scenes."""
    cells = [(column, row) for row in range(GRID) for column in range(GRID)]
    every = [taken for count in range(SIGNS[0], SIGNS[1] + 1) for taken in combinations(cells, count)]
    return tuple(taken for taken in every if split_of(f"layout {taken}") == split)


def scene(split: str, number: int) -> Scene:
    """Scene `number` of a split: always the same."""
    rng = random.Random(f"{split} {number}")
    cells = rng.choice(layouts_of(split))
    looks = [(colour, rng.choice(KINDS)) for colour in rng.sample(COLOURS, len(cells))]
    if rng.random() < TWINS:
        one, other = rng.sample(range(len(looks)), 2)
        colour, own = looks[one]
        looks[other] = colour, rng.choice([kind for kind in KINDS if kind != own])
    rare = iter(rng.sample(words_of(split), MOST_WORDS * len(cells)))
    signs = []
    for (colour, kind), cell in zip(looks, cells, strict=True):
        count = rng.choices(range(1, MOST_WORDS + 1), (6, 7, 4, 3))[0]
        words = tuple(rng.choice(COMMON) if rng.random() < COMMON_SHARE else next(rare) for _ in range(count))
        signs.append(Sign(colour, kind, cell, _sign_box(cell, rng), words))
    ocr = [seen for number, sign in enumerate(signs) for seen in _read(number, sign, rng)]
    # Reading order of the whole scene: the signs of one row of cells are read line by line across.
    ocr.sort(key=lambda seen: (round(seen.box[1] * 20), seen.box[0]))
    question, answer = rng.choice(list(_questions(signs, rng)))
    return Scene(tuple(signs), tuple(ocr), question, answer)


def _sign_box(cell: tuple[int, int], rng: random.Random) -> Box:
    """A box inside a cell that leaves a margin at each side."""
    x0, y0 = ((place + rng.uniform(0.05, 0.2)) / GRID for place in cell)
    return x0, y0, x0 + rng.uniform(0.6, 0.75) / GRID, y0 + rng.uniform(0.5, 0.75) / GRID


def _read(number: int, sign: Sign, rng: random.Random) -> list[Read]:
    """What OCR sees of a sign: words side by side, at most two a line."""
    lines = [range(start, min(start + 2, len(sign.words))) for start in range(0, len(sign.words), 2)]
    x0, y0, x1, y1 = sign.box
    height = (y1 - y0) / len(lines)
    found = []
    for line, places in enumerate(lines):
        letters = sum(len(sign.words[place]) for place in places)
        x = x0
        for place in places:
            word = sign.words[place]
            width = (x1 - x0) * len(word) / letters
            box = (x + 0.1 * width, y0 + (line + 0.2) * height, x + 0.9 * width, y0 + (line + 0.8) * height)
            x += width
            if rng.random() >= DROPPED:
                text = misspelt(word, rng) if rng.random() < MISSPELT else word
                found.append(Read(text, box, (number, place)))
    return found


def misspelt(word: str, rng: random.Random) -> str:
    """`word` with one letter changed, lost or doubled; never `word` itself."""
    place = rng.randrange(len(word))
    other = rng.choice([letter for letter in "abcdefghijklmnopqrstuvwxyz" if letter != word[place]])
    return word[:place] + rng.choice((other, "", 2 * word[place])) + word[place + 1 :]


def _questions(signs: Sequence[Sign], rng: random.Random):
    """One question of each sort that the scene allows, with its answer."""
    number = rng.randrange(len(signs))
    sign = signs[number]
    whole = tuple((word, (number, place)) for place, word in enumerate(sign.words))
    yield f"what does the {sign.name} say", whole
    which = rng.choice(("first", "last"))
    yield f"what is the {which} word on the {sign.name}", whole[:1] if which == "first" else whole[-1:]
    related = [
        (relation, number, other)
        for number, sign in enumerate(signs)
        for relation, step in RELATIONS.items()
        if (other := _neighbour(signs, sign, step)) is not None
    ]
    for _ in range(2 if related else 0):  # asked for twice as often as the others
        relation, number, other = rng.choice(related)
        words = tuple((word, (other, place)) for place, word in enumerate(signs[other].words))
        yield f"what is written {relation} the {signs[number].name}", words
    if related:
        relation, number, other = rng.choice(related)
        yield f"what colour is {relation} the {signs[number].name}", ((signs[other].colour, None),)


def _neighbour(signs: Sequence[Sign], sign: Sign, step: tuple[int, int]) -> int | None:
    """The nearest sign that way in the same row or column of cells."""
    column, row = sign.cell
    for distance in range(1, GRID):
        cell = (column + distance * step[0], row + distance * step[1])
        for number, other in enumerate(signs):
            if other.cell == cell:
                return number
    return None
