"""Captions from questions and answers, and the small GIT that writes them: trained, pruned and retrained."""

import copy
from dataclasses import replace

import pytest
import torch
import transformers
from packaging.version import Version

import pyprune
from benchmarks.tasks import run
from benchmarks.tasks.easy_captions.task import RECIPE, EasyCaptions, captioned
from benchmarks.tasks.easy_vqa.data import ANSWERS, BEGIN, END, NUMBER, VOCABULARY, Data, tokens
from benchmarks.tasks.task import DataError, Dense

SHAPE = {"width": 32, "heads": 4, "neurons": 64, "image_layers": 2, "text_layers": 2}


@pytest.fixture(scope="module")
def task(easy_vqa_folder):
    return EasyCaptions(easy_vqa_folder, replace(RECIPE, epochs=20.0, batch=8), **SHAPE)


@pytest.fixture(scope="module")
def model(task):
    """Trained until its captions end where they should, most of the time."""
    made = task.fresh(0)
    task.train(made, 0)
    return made


def written(*asked):
    """The caption of an image that these pairs of a question and an answer are about; None if they leave it open."""
    own = Data(
        numbers=torch.tensor([7]),
        images=torch.zeros(1, 3, 64, 64),
        questions=torch.tensor([tokens(question) for question, _ in asked]),
        about=torch.zeros(len(asked), dtype=torch.int64),
        answers=torch.tensor([NUMBER[answer] for _, answer in asked]),
    )
    images, captions = captioned(own)
    assert len(images) == len(captions)
    return " ".join(VOCABULARY[token] for token in captions[0].tolist()) if len(captions) else None


@pytest.mark.parametrize(
    "asked",
    [
        [("what color is the circle?", "teal")],
        [("what is the teal shape?", "circle")],
        [("what shape is present?", "circle"), ("is there not a teal shape?", "no")],
        [("is a circle present?", "yes"), ("is there a red shape?", "no"), ("is no teal shape present?", "no")],
        [
            ("what is the color of the shape?", "teal"),
            ("is there not a red shape?", "yes"),
            ("is a circle present?", "yes"),
        ],
    ],
)
def test_questions_and_answers_tell_the_caption(asked):
    assert written(*asked) == "[begin] a teal circle [end]"


@pytest.mark.parametrize(
    "asked",
    [
        [("what color is the shape?", "teal")],
        [("what shape is present?", "circle"), ("is there a teal shape?", "no")],
        [("is there not a circle?", "yes"), ("what color is the shape?", "teal")],
    ],
)
def test_an_image_that_is_not_fully_told_of_has_none(asked):
    assert written(*asked) is None


def test_each_split_has_its_own_images(task):
    for split, (images, captions) in task.data.items():
        own = task.asked[split]
        assert torch.equal(images, own.images)
        said = [[VOCABULARY[token] for token in caption] for caption in captions.tolist()]
        for words, s in zip(said, range(len(own.images)), strict=True):
            answers = {VOCABULARY[a] for a in own.answers[own.about == s].tolist()} - {"yes", "no"}
            assert words == ["[begin]", "a", *sorted(answers, key=ANSWERS.index), "[end]"]


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install --no-deps easy-vqa"):
        EasyCaptions()


def test_exact_match_is_that_of_generated_captions(task, model):
    images, captions = task.data["train"]
    cached = Version(transformers.__version__) >= Version("5.23")
    # GIT of older transformers versions loses its position when it generates with a cache.
    said = model.generate(pixel_values=images, max_new_tokens=8, do_sample=False, use_cache=cached)
    said = torch.nn.functional.pad(said, (0, 9 - said.shape[1]))[:, :5]
    right = int((said == captions).all(1).sum())
    assert 0 < right < len(captions)
    assert task.evaluate(model, "train") == right / len(captions)


def test_training_repeats_itself_and_is_kept_by_its_settings(easy_vqa_folder):
    short = [EasyCaptions(easy_vqa_folder, replace(RECIPE, epochs=1.0, batch=8), **SHAPE) for _ in range(2)]
    first, second = (own.fresh(1) for own in short)
    for own, made in zip(short, (first, second), strict=True):
        own.train(made, 1)
    weights = second.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in first.state_dict().items())
    wider = EasyCaptions(easy_vqa_folder, short[0].recipe, **{**SHAPE, "width": 64})
    assert short[0]._key(0) == short[1]._key(0)
    assert len({short[0]._key(0), short[0]._key(1), wider._key(0)}) == 3


def test_calibration_has_no_captions(task):
    assert all(set(row) == {"pixel_values"} for row in task.calibration(8, seed=0))
    labelled = task.calibration(8, seed=0, labels=True)
    assert all((row["input_ids"][0], row["input_ids"][-1]) == (BEGIN, END) for row in labelled)


@pytest.mark.parametrize(
    ("recipe", "recover"), [(pyprune.LFPR(), {"share": 1.0, "layers": 1}), (pyprune.Kwon(cotangent="labels"), None)]
)
def test_the_runner_prunes_and_retrains_it(task, model, recipe, recover):
    dense = Dense(copy.deepcopy(model), {"key": "tiny", "test": 0.5})
    (row,) = run.measure(
        task, dense, recipe, "params", 0.5, samples=12, recoveries=[recover], recovery_samples=12, repeats=1
    )
    assert 0.4 < row.achieved <= 0.5
    assert 0 <= row.pruned <= 1
    assert (row.recovered is None) == (recover is None)
