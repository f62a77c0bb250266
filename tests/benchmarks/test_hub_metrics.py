"""The figures of the hub's tasks, against numbers that were worked out by hand."""

import math

import pytest
import torch

from benchmarks.tasks.hub import metrics


def test_correlations():
    assert metrics.spearman([1, 2, 3, 4], [10, 30, 20, 40]) == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert metrics.spearman([1, 1, 2], [1, 2, 3]) == pytest.approx(1.5 / math.sqrt(1.5 * 2))  # ranks 1.5, 1.5, 3
    # 2 true and 1 false positives, 1 true and 1 false negatives
    assert metrics.matthews([1, 1, 1, 0, 0], [1, 1, 0, 1, 0]) == pytest.approx(
        (2 * 1 - 1 * 1) / math.sqrt(3 * 3 * 2 * 2)
    )
    assert metrics.matthews([1, 1], [0, 1]) == 0
    assert metrics.accuracy([1, 2, 3], [1, 0, 3]) == pytest.approx(2 / 3)


def test_squad():
    assert metrics.squad_exact("The Cat!", ["dog", "cat"]) == 1
    assert metrics.squad_f1("the cat sat", ["dog", "a cat sat down"]) == pytest.approx(2 * 2 / (2 + 3))
    assert metrics.squad_f1("cat cat", ["cat"]) == pytest.approx(2 * 1 / (2 + 1))
    assert [metrics.squad_f1(said, [""]) for said in ("", "The", "cat")] == [1, 1, 0]


@pytest.mark.parametrize(
    ("given", "compared"),
    [
        ("The two dogs.", "2 dogs"),
        ("1,000", "1000"),
        ("$3.50", "$3.50"),
        ("black/white", "black white"),
        ("well - known", "well known"),
        ("dont", "don't"),
        ("y'alld've", "y'all'd've"),
        ("dog's bed?", "dog 's bed"),
        ("None", "0"),
    ],
)
def test_words_of_vqa(given, compared):
    assert metrics.vqa_words(given) == compared


@pytest.mark.parametrize(("people", "accuracy"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0)])
def test_vqa_accuracy_leaves_each_person_out(people, accuracy):
    truths = ["The Red"] * people + [f"blue{i}" for i in range(10 - people)]
    assert metrics.vqa_accuracy("red", truths) == pytest.approx(accuracy)


def test_one_answer_is_enough_on_st_vqa():
    assert [metrics.any_match("stop", truths) for truths in (["Stop!", "go"], ["go"])] == [1, 0]


def test_cider_d():
    truths = [["A cat."], ["a dog"]]
    # "a" is of both images: log(2 / 2) = 0. Cosines 1 of "cat" and of "a cat", none of longer n-grams.
    assert metrics.cider_d(["a cat", "a dog"], truths) == pytest.approx(10 * (1 + 1) / 4)
    # "cat" twice is clipped to once: 1 / 2. "a cat" beside "cat cat": 1 / sqrt(2). A bigram more than the truth's.
    other = 10 * (1 / 2 + 1 / math.sqrt(2)) / 4 * math.exp(-1 / (2 * 36))
    assert metrics.cider_d(["a cat cat", "a dog"], truths) == pytest.approx((other + 5) / 2)
    assert metrics.cider_d(["", "dog a"], [["a cat", "cats"], ["a dog"]]) == pytest.approx(10 * 1 / 4 / 2)


def test_recall_of_images_and_texts():
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    texts = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])  # the second is nearer to the other image
    assert metrics.recall_at_1(images, texts, torch.tensor([0, 0, 1])) == pytest.approx((1 + 2 / 3) / 2)


def test_mean_iou():
    found, true = torch.tensor([[0, 0, 0], [1, 1, 2]]), torch.tensor([[0, 0, 1], [1, -1, 1]])
    pixels = metrics.overlaps(found, true, 4)
    assert pixels.tolist() == [[2, 1, 0, 0], [3, 3, 1, 0]]
    assert metrics.mean_iou(pixels) == pytest.approx((2 / 3 + 1 / 3 + 0) / 3)
