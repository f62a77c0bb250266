"""The figures that the papers report, in float64, each as its reference implementation counts it."""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch


def accuracy(answers: Sequence[Any], truths: Sequence[Any]) -> float:
    return fmean(answer == truth for answer, truth in zip(answers, truths, strict=True))


def spearman(answers: Sequence[float], truths: Sequence[float]) -> float:
    """Rank correlation; 0 where all answers are one, as it is of a model that is left with nothing."""
    from scipy.stats import rankdata

    return _correlation(rankdata(answers), rankdata(truths))


def matthews(answers: Sequence[int], truths: Sequence[int]) -> float:
    """Correlation of two classes; 0 where all answers are one."""
    return _correlation(answers, truths)


def _correlation(x: Sequence[float], y: Sequence[float]) -> float:
    x, y = (torch.as_tensor(values, dtype=torch.float64) for values in (x, y))
    x, y = x - x.mean(), y - y.mean()
    scale = float(x.norm() * y.norm())
    return float(x @ y) / scale if scale else 0.0


def squad_words(text: str) -> list[str]:
    """Words as SQuAD's evaluation compares them: lower case, without punctuation and articles."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def squad_exact(answer: str, truths: Sequence[str]) -> float:
    return max(float(squad_words(answer) == squad_words(truth)) for truth in truths)


def squad_f1(answer: str, truths: Sequence[str]) -> float:
    """F1 of the words of the answer and the truth it is nearest to; of no words at all: whether both have none."""

    def f1(said: list[str], true: list[str]) -> float:
        if not said or not true:
            return float(said == true)
        return 2 * (Counter(said) & Counter(true)).total() / (len(said) + len(true))

    return max(f1(squad_words(answer), squad_words(truth)) for truth in truths)


# English contractions that the VQA evaluation restores when one of their apostrophes is missing.
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
_RESTORED = {w[:i] + w[i + 1 :]: w for w in _CONTRACTIONS.split() for i, c in enumerate(w) if c == "'"}
_NUMBERS = "zero one two three four five six seven eight nine ten"
# The last two are the evaluation's own.
_WORDS = {**_RESTORED, **{w: str(i) for i, w in enumerate(_NUMBERS.split())}, "none": "0", "somebody'd": "somebodyd"}
_MARKS = ';/[]"{}()=+\\_-><@`!'


def vqa_words(text: str) -> str:
    """An answer as the VQA evaluation (EvalAI's, in M4C) compares it.

    Lower case, without commas and articles; numbers as digits; a mark is dropped everywhere if it stands at a space
    anywhere, and else is a space; points stay in front of digits.
    """
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    given = text = text.replace("\n", " ").replace("\t", " ").strip()
    for mark in _MARKS:
        text = text.replace(mark, "" if mark + " " in given or " " + mark in given else " ")
    words = re.sub(r"\.(?!\d)", "", text).split()
    return " ".join(_WORDS.get(word, word) for word in words if word not in ("a", "an", "the"))


def vqa_accuracy(answer: str, truths: Sequence[str]) -> float:
    """min(n / 3, 1) for n people who say the same, the mean over all choices of leaving one person out."""
    said, people = vqa_words(answer), [vqa_words(truth) for truth in truths]
    return fmean(min(1.0, (people.count(said) - (said == own)) / 3) for own in people)


def any_match(answer: str, truths: Sequence[str]) -> float:
    """Whether one of the truths is the answer, in the words of the VQA evaluation (M4C's accuracy on ST-VQA)."""
    return float(vqa_words(answer) in map(vqa_words, truths))


def cider_d(answers: Sequence[str], truths: Sequence[Sequence[str]], sigma: float = 6.0) -> float:
    """CIDEr-D (Vedantam et al. 2015, as in coco-caption), the mean over images.

    Document frequencies are those of the truths. Words are what is left in lower case without punctuation, where
    coco-caption takes the Penn Treebank tokenizer.
    """
    said = [_ngrams(answer) for answer in answers]
    true = [[_ngrams(truth) for truth in own] for own in truths]
    frequency = Counter(gram for own in true for gram in {gram for counts in own for gram in counts})
    images = math.log(len(true))

    def vectors(counts: Counter) -> list[dict[tuple[str, ...], float]]:
        """tf-idf of the n-grams, one vector for each n."""
        found: list[dict[tuple[str, ...], float]] = [{} for _ in range(4)]
        for gram, count in counts.items():
            found[len(gram) - 1][gram] = count * (images - math.log(max(1, frequency[gram])))
        return found

    def similarity(one: Counter, other: Counter) -> float:
        gap = _length(one) - _length(other)
        cosines = 0.0
        for x, y in zip(vectors(one), vectors(other), strict=True):
            scale = math.hypot(*x.values()) * math.hypot(*y.values())
            if scale:
                cosines += sum(min(x[gram], y.get(gram, 0.0)) * y.get(gram, 0.0) for gram in x) / scale
        return 10 * cosines / 4 * math.exp(-(gap**2) / (2 * sigma**2))

    pairs = zip(said, true, strict=True)
    return fmean(fmean(similarity(answer, truth) for truth in own) for answer, own in pairs)


def _ngrams(text: str) -> Counter:
    """Counts of 1- to 4-grams."""
    words = "".join(c for c in text.lower() if c not in string.punctuation).split()
    return Counter(tuple(words[i : i + n]) for n in range(1, 5) for i in range(len(words) - n + 1))


def _length(counts: Counter) -> int:
    """Bigrams, which the reference takes for the length."""
    return sum(count for gram, count in counts.items() if len(gram) == 2)


def recall_at_1(images: torch.Tensor, texts: torch.Tensor, about: torch.Tensor) -> float:
    """Embeddings `[I, d]` and `[T, d]` of L2 norm 1; text t is `about[t]`.

    The mean of two shares: of images whose nearest text is one of theirs, and of texts whose nearest image is theirs.
    """
    nearness = images.double() @ texts.double().T
    of_images = about[nearness.argmax(1)] == torch.arange(len(images))
    of_texts = nearness.argmax(0) == about
    return float((of_images.double().mean() + of_texts.double().mean()) / 2)


def overlaps(found: torch.Tensor, true: torch.Tensor, classes: int) -> torch.Tensor:
    """`[2, classes]` pixels in which a class is found and true, and in which it is one of the two.

    Maps are `[H, W]`; pixels whose true class is below 0 do not count.
    """
    found, true = found[true >= 0], true[true >= 0]
    both = torch.bincount(found[found == true], minlength=classes)
    return torch.stack(
        [both, torch.bincount(found, minlength=classes) + torch.bincount(true, minlength=classes) - both]
    )


def mean_iou(pixels: torch.Tensor) -> float:
    """From the sum `[2, classes]` of `overlaps` of all images; classes that are nowhere do not count."""
    both, one = pixels.double()
    return float((both / one)[one > 0].mean())
