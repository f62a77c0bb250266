"""Generated scenes, their questions and answers, the model that reads them, and that it can be pruned."""

import copy
import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import pyprune
from benchmarks.tasks import run
from benchmarks.tasks.scene_text_vqa import scenes
from benchmarks.tasks.scene_text_vqa.features import BEGIN, END, PAD, STEPS, VOCABULARY, data, word_features
from benchmarks.tasks.scene_text_vqa.task import RECIPE, SceneTextVQA
from benchmarks.tasks.task import Dense
from pyprune.capture.masking import masked
from pyprune.core.plan import Plan
from pyprune.models.adapter import adapter_for

SPLITS = ("train", "dev", "test")
SHAPE = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}


@pytest.fixture(scope="module")
def task():
    return SceneTextVQA(train=64, dev=16, test=16, recipe=replace(RECIPE, epochs=1.0, batch=32, lr=1e-3), **SHAPE)


@pytest.fixture(scope="module")
def model(task):
    return task.fresh(0).eval()


def test_a_scene_is_always_the_same():
    one = scenes.scene("train", 7)
    assert one == scenes.scene("train", 7)
    assert one != scenes.scene("train", 8)
    assert one != scenes.scene("test", 7)
    assert data("train", range(20)).sha256 == data("train", range(20)).sha256 != data("dev", range(20)).sha256
    alone, among = data("train", [7]), data("train", range(20))
    assert torch.equal(alone.objects[0], among.objects[7])
    read = alone.ocr_boxes[0, :, 2] > 0
    assert torch.equal(alone.words[alone.ocr[0, read]], among.words[among.ocr[7, read]])
    assert torch.equal(alone.ocr_looks[0], among.ocr_looks[7])


def test_words_and_layouts_of_the_splits_are_disjoint():
    for of in (scenes.words_of, scenes.layouts_of):
        parts = [set(of(split)) for split in SPLITS]
        assert all(parts)
        assert len(set.union(*parts)) == sum(map(len, parts))
    assert not set(scenes.words_of("train")) & set(VOCABULARY)
    for split in SPLITS:
        words, layouts = {*scenes.words_of(split), *scenes.COMMON}, set(scenes.layouts_of(split))
        for number in range(50):
            made = scenes.scene(split, number)
            assert {word for sign in made.signs for word in sign.words} <= words
            assert tuple(sign.cell for sign in made.signs) in layouts


def inside(box, outer):
    return outer[0] <= box[0] < box[2] <= outer[2] and outer[1] <= box[1] < box[3] <= outer[3]


def beyond(box, other, relation):
    """Whether `other` is `relation` of `box`, by their boxes alone."""
    apart = {
        "left of": other[2] < box[0],
        "right of": other[0] > box[2],
        "above": other[3] < box[1],
        "below": other[1] > box[3],
    }
    return apart[relation]


def test_answers_are_what_stands_on_the_sign_that_is_asked_for():
    sorts = set()
    for number in range(200):
        made = scenes.scene("dev", number)
        assert len({sign.name for sign in made.signs}) == len(made.signs)
        for read in made.ocr:
            assert inside(read.box, made.signs[read.place[0]].box)
        named = [sign for sign in made.signs if f"the {sign.name}" in made.question]
        assert len(named) == 1
        sort = made.question.replace(f"the {named[0].name}", "").strip()
        sorts.add(sort)
        relation = next((r for r in scenes.RELATIONS if sort.endswith(r)), None)
        if relation is None:
            whole = " ".join(named[0].words)
            expected = {"first": named[0].words[0], "last": named[0].words[-1]}
            assert made.answer_text == next((w for which, w in expected.items() if which in sort), whole)
        else:
            asked = [s for s in made.signs if made.answer_text in (" ".join(s.words), s.colour)]
            assert any(beyond(named[0].box, sign.box, relation) for sign in asked)
    assert len(sorts) >= 10


def test_some_words_are_misread_and_some_not_read():
    made = [scenes.scene("train", number) for number in range(300)]
    there = sum(len(sign.words) for s in made for sign in s.signs)
    read = [(seen.text, s.signs[seen.place[0]].words[seen.place[1]]) for s in made for seen in s.ocr]
    assert 0 < 1 - len(read) / there < 3 * scenes.DROPPED
    assert 0 < sum(text != word for text, word in read) / len(read) < 2 * scenes.MISSPELT
    rng = random.Random(0)
    assert all(scenes.misspelt("bank", rng) != "bank" for _ in range(200))


def test_targets_spell_the_answer_where_it_was_read():
    own = data("test", range(300))
    for s in range(len(own)):
        made, said = scenes.scene("test", s), own.text(s, own.targets[s].tolist())
        seen = {read.place: read.text for read in made.ocr}
        legible = all(word in VOCABULARY or seen.get(place) == word for word, place in made.answer)
        assert legible <= (said == own.answers[s])
    right = sum(own.text(s, own.targets[s].tolist()) == own.answers[s] for s in range(len(own)))
    assert 0.93 < right / len(own) < 1.0


def test_words_that_look_alike_have_like_features():
    bank, bamk, hotel = map(word_features, ("bank", "bamk", "hotel"))
    assert bank @ bamk > 0.3 + bank @ hotel
    assert torch.allclose(bank.norm(), torch.tensor(1.0))


@torch.no_grad()
def test_padding_and_later_words_change_nothing(task, model):
    own = data("train", range(8))
    said = torch.nn.functional.pad(own.targets, (1, -1), value=BEGIN)
    together = model(**own.batch(torch.arange(8)), decoder_input_ids=said).logits
    assert together.shape == (8, said.shape[1], model.config.vocab_size)
    later = said.clone()
    later[:, 2:] = END
    changed = model(**own.batch(torch.arange(8)), decoder_input_ids=later).logits
    torch.testing.assert_close(changed[:, :2], together[:, :2])
    assert (changed[:, 2:] - together[:, 2:]).abs().max() > 1e-3
    for s in range(8):
        row = {name: tensor[None] for name, tensor in own.row(s, labels=False).items()}
        alone = model(**row, decoder_input_ids=said[s : s + 1]).logits
        torch.testing.assert_close(alone[0], together[s], rtol=1e-4, atol=1e-4)


def test_training_repeats_itself(task):
    trained = [task.fresh(1), task.fresh(1), task.fresh(1)]
    for model in trained[:2]:
        task.train(model, seed=1)
    first, second, before = (model.state_dict() for model in trained)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert any(not torch.equal(value, before[name]) for name, value in first.items())


def test_exact_match_counts_whole_answers(task):
    own = data("test", range(16))
    legible = [own.text(s, own.targets[s].tolist()) == own.answers[s] for s in range(16)]
    oracle = SimpleNamespace(
        eval=lambda: None,
        parameters=lambda: iter([torch.zeros(1)]),
        generate=lambda **_: torch.nn.functional.pad(own.targets, (1, 0), value=BEGIN),
    )
    assert task.evaluate(oracle, "test") == sum(legible) / 16
    oracle.generate = lambda **_: torch.full((16, 2), END)
    assert task.evaluate(oracle, "test") == 0.0


def test_answers_end_within_twelve_steps(task, model):
    inputs = task.example(4)
    del inputs["decoder_input_ids"]
    answers = model.generate(**inputs, max_new_tokens=50)
    assert answers.shape[1] <= 1 + STEPS
    assert (answers[:, 0] == BEGIN).all()
    after_end = (answers == END).cumsum(1).roll(1, 1)[:, 1:] > 0
    assert (answers[:, 1:][after_end] == PAD).all()


@pytest.mark.parametrize("emptied", [False, True])
@torch.no_grad()
def test_cached_steps_are_those_of_the_whole_sequence(task, model, emptied):
    model = copy.deepcopy(model)
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.copy_(0.3 * torch.randn(parameter.shape))
    model.answer.bias -= 5  # words that it reads, several of them
    if emptied:  # a layer without heads has nothing to cache
        plan = Plan.keep_all(adapter_for(model).anatomy(model))
        plan.kept["layers.0.heads"] = torch.tensor([], dtype=torch.int64)
        model = pyprune.apply(model, plan)
    inputs = task.example(8)
    del inputs["decoder_input_ids"]
    written = model.generate(**inputs, return_dict_in_generate=True)
    said = written.sequences[:, :-1]
    logits = model(**inputs, decoder_input_ids=said).logits
    open_ = (said == END).cumsum(1) == 0
    torch.testing.assert_close(torch.stack(written.logits, 1)[open_], logits[open_], rtol=1e-4, atol=1e-4)
    assert torch.equal(written.sequences[:, 1:][open_], logits.argmax(-1)[open_])
    assert len(written.logits) > 2
    assert len({tuple(row) for row in written.sequences.tolist()}) > 1


def test_calibration_has_no_labels_and_is_drawn_by_seed(task):
    rows = task.calibration(8, seed=0)
    assert all("labels" not in row for row in rows)
    assert all("labels" in row for row in task.calibration(8, seed=0, labels=True))
    same = [all(torch.equal(a[k], b[k]) for k in a) for a, b in zip(rows, task.calibration(8, seed=0), strict=True)]
    assert all(same)


def test_masked_sliced_and_reloaded_are_one(task, model, tmp_path):
    scores = pyprune.score(model, task.calibration(8, 0), recipe="kwon", criterion="random", tuning="none")
    plan = pyprune.plan(model, scores, {"flops": 0.5}, recipe="kwon", tuning="none", length=task.length)
    sliced = pyprune.apply(model, plan)
    sliced.save_pretrained(tmp_path)
    reloaded = type(model).from_pretrained(tmp_path).eval()
    inputs = task.example(4)
    with torch.no_grad():
        expected = sliced(**inputs).logits
        assert torch.equal(reloaded(**inputs).logits, expected)
        dense = copy.deepcopy(model)
        anatomy = adapter_for(dense).anatomy(dense)
        with masked(dense, anatomy, plan):
            torch.testing.assert_close(dense(**inputs).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("recipe", "recover"),
    [
        (pyprune.LFPR(), {"share": 1.0, "layers": 1}),
        (pyprune.LFPR(compat="published"), None),
        (pyprune.Kwon(cotangent="labels"), None),
    ],
)
def test_the_runner_prunes_it(task, model, recipe, recover):
    dense = Dense(copy.deepcopy(model), {"key": "tiny", "test": 0.5})
    (row,) = run.measure(
        task, dense, recipe, "flops", 0.5, samples=12, recoveries=[recover], recovery_samples=8, repeats=1
    )
    assert 0.4 < row.achieved <= 0.5
    assert 0 <= row.pruned <= 1
    assert (row.recovered is None) == (recover is None)
