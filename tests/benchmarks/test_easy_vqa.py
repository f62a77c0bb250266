"""The package's questions and images as tensors, and the small BLIP: trained, pruned and retrained."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

import pyprune
from benchmarks.tasks import run
from benchmarks.tasks.easy_vqa import data as easy_vqa
from benchmarks.tasks.easy_vqa.data import BEGIN, END, NUMBER, VOCABULARY
from benchmarks.tasks.easy_vqa.task import RECIPE, EasyVQA, answered, flipped
from benchmarks.tasks.peers import TorchPruning
from benchmarks.tasks.task import DataError, Dense
from pyprune.calibration import calibration_data
from pyprune.capture import outputs

SHAPE = {"width": 32, "heads": 4, "neurons": 64, "image_layers": 2, "text_layers": 2}


@pytest.fixture(scope="module")
def task(easy_vqa_folder):
    return EasyVQA(easy_vqa_folder, replace(RECIPE, epochs=1.0, batch=8), **SHAPE)


@pytest.fixture(scope="module")
def model(task):
    return task.fresh(0).eval()


def words(ids):
    return " ".join(VOCABULARY[token] for token in ids.tolist()).rstrip(" ?")


def test_splits_share_no_image_and_keep_what_was_asked(task, easy_vqa_folder):
    numbers = {split: own.numbers.tolist() for split, own in task.data.items()}
    assert sorted(numbers["train"] + numbers["dev"]) == list(range(40))
    assert numbers["dev"]
    assert numbers["test"] == list(range(8))
    given = json.loads((easy_vqa_folder / "test" / "questions.json").read_text())
    own = task.data["test"]
    found = [
        [f"{words(question)}?", VOCABULARY[answer], int(own.numbers[image])]
        for question, answer, image in zip(own.questions, own.answers.tolist(), own.about, strict=True)
    ]
    assert found == given
    assert own.counts.tolist() == [3] * 8


def test_images_are_what_the_files_show(task, easy_vqa_folder):
    own = task.data["dev"]
    assert own.images.shape[1:] == (3, 64, 64)
    for number, image in zip(own.numbers.tolist(), own.images, strict=True):
        with Image.open(easy_vqa_folder / "train" / "images" / f"{number}.png") as file:
            for x, y in ((0, 0), (15, 25)):
                assert [round(127.5 * (value + 1)) for value in image[:, y, x].tolist()] == list(file.getpixel((x, y)))


def test_the_package_has_them():
    try:
        source = easy_vqa.found()
    except DataError:
        pytest.skip("easy-vqa is not installed")
    counts = {"train": 0, "dev": 0, "test": 0}
    for part in ("train", "test"):
        for _, _, number in easy_vqa._questions(source / part / "questions.json"):
            counts[easy_vqa.split_of(number) if part == "train" else part] += 1
            assert (source / part / "images" / f"{number}.png").exists()
    assert sum(counts.values()) == 38_575 + 9_673
    assert counts["test"] == 9_673
    assert 0.09 < counts["dev"] / 38_575 < 0.11


def test_missing_and_broken_files_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(easy_vqa.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install --no-deps easy-vqa"):
        EasyVQA()
    with pytest.raises(DataError, match=r"questions\.json: expected a list"):
        easy_vqa.read(tmp_path)
    (tmp_path / "train" / "images").mkdir(parents=True)
    (tmp_path / "test").mkdir()
    for text, reason in (
        ('[["is there a circle?", "yes"]]', "expected a list"),
        ('[["is it furry?", "yes", 0]]', "the task cannot read"),
        ('[["is there a circle?", "maybe", 0]]', "'maybe'"),
        ('[["is there a a a a a a a circle?", "yes", 0]]', "the task cannot read"),
        ("[]", "no question is asked about an image of train, dev, test"),
    ):
        for part in ("train", "test"):
            (tmp_path / part / "questions.json").write_text(text)
        with pytest.raises(DataError, match=reason):
            easy_vqa.read(tmp_path)
    for part in ("train", "test"):
        every = [["is there a circle?", "yes", number] for number in range(40)]
        (tmp_path / part / "questions.json").write_text(json.dumps(every))
    first = next(number for number in range(40) if easy_vqa.split_of(number) == "train")
    with pytest.raises(DataError, match=rf"{first}\.png: not an image"):
        easy_vqa.read(tmp_path)
    Image.new("RGB", (32, 64)).save(tmp_path / "train" / "images" / f"{first}.png")
    with pytest.raises(DataError, match=rf"{first}\.png: expected 64 x 64 pixels, found 32 x 64"):
        easy_vqa.read(tmp_path)


def test_a_half_of_the_images_is_mirrored(task):
    images = task.data["train"].images[:20]
    seen = flipped(images, torch.Generator().manual_seed(0))
    same = [torch.equal(a, b) for a, b in zip(images, seen, strict=True)]
    mirrored = [torch.equal(a.flip(-1), b) for a, b in zip(images, seen, strict=True)]
    assert sum(same) + sum(mirrored) == 20
    assert 4 < sum(same) < 16


@torch.no_grad()
def test_images_that_are_encoded_once_give_what_the_forward_gives(task, model):
    own = task.data["train"]
    rows = [17, 6, 7, 15]
    together, targets = answered(model, own, torch.tensor(rows))
    assert targets.tolist() == [[int(own.answers[s]), END] for s in rows]
    for logits, s in zip(together, rows, strict=True):
        row = {name: tensor[None] for name, tensor in task.rows(labels=False)[s].items()}
        said = torch.tensor([[BEGIN, int(own.answers[s])]])
        alone = outputs.run(model, {**row, "decoder_input_ids": said}).logits[0]
        torch.testing.assert_close(logits, alone, rtol=1e-4, atol=1e-4)


def test_exact_match_is_that_of_generated_answers(task, easy_vqa_folder):
    trained = task.fresh(0)
    optimised = EasyVQA(easy_vqa_folder, replace(RECIPE, epochs=6.0, batch=8), **SHAPE)
    optimised.train(trained, 0)
    own, right = task.data["test"], 0
    for s, answer in enumerate(own.answers.tolist()):
        inputs = {"pixel_values": own.images[own.about[s]][None], "input_ids": own.questions[s][None]}
        right += trained.generate(**inputs, max_new_tokens=4, do_sample=False)[0].tolist() == [BEGIN, answer, END]
    assert 0 < right < len(own.answers)
    assert task.evaluate(trained, "test") == right / len(own.answers)


def test_training_repeats_itself_and_lowers_the_loss(task):
    def loss(model):
        with torch.no_grad():
            logits, targets = answered(model, task.data["train"], torch.arange(90))
        return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()))

    trained = [task.fresh(1), task.fresh(1)]
    before = loss(trained[0])
    for model in trained:
        task.train(model, seed=1)
    first, second = (model.state_dict() for model in trained)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert loss(trained[0]) < 0.9 * before


def test_other_data_settings_and_seeds_are_other_models(task, easy_vqa_folder):
    other = EasyVQA(easy_vqa_folder, task.recipe, **{**SHAPE, "width": 64})
    assert len({task._key(0), task._key(1), other._key(0)}) == 3


def test_calibration_has_no_labels_and_labels_are_answers(task):
    assert all(set(row) == {"pixel_values", "input_ids"} for row in task.calibration(8, seed=0))
    for plain, labelled in zip(task.calibration(8, 1), task.calibration(8, 1, labels=True), strict=True):
        assert torch.equal(plain["input_ids"], labelled["input_ids"])
        asked, (answer, end) = words(plain["input_ids"]), labelled["labels"].tolist()
        assert end == END
        if asked.startswith("what color"):
            assert VOCABULARY[answer] in easy_vqa.COLOURS
        elif asked.startswith("what shape"):
            assert VOCABULARY[answer] in easy_vqa.SHAPES
        else:
            assert answer in (NUMBER["yes"], NUMBER["no"])


def test_kept_and_loaded_again(task, model, tmp_path, monkeypatch):
    monkeypatch.setattr(task, "train", lambda *_: None)
    trained = task.dense(cache=tmp_path, baselines=tmp_path / "none")
    folder = task.keep(cache=tmp_path, baselines=tmp_path / "kept")
    assert json.loads((folder / "dense.json").read_text())["key"] == trained.report["key"]
    found = task.dense(cache=tmp_path / "other", baselines=tmp_path / "kept")
    assert found.report["origin"] == "baselines"
    weights = trained.model.float().state_dict()
    for name, value in found.model.state_dict().items():
        torch.testing.assert_close(value, weights[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("recipe", "recover"),
    [
        (pyprune.LFPR(), {"share": 1.0, "layers": 1}),
        (pyprune.Kwon(cotangent="labels"), {"method": "full", "targets": "soft"}),
    ],
)
def test_the_runner_prunes_and_retrains_it(task, model, recipe, recover):
    dense = Dense(copy.deepcopy(model), {"key": "tiny", "test": 0.5})
    (row,) = run.measure(
        task, dense, recipe, "params", 0.5, samples=16, recoveries=[recover], recovery_samples=16, repeats=1
    )
    assert 0.4 < row.achieved <= 0.5
    assert {0 <= value <= 1 for value in (row.pruned, row.recovered)} == {True}


def test_retraining_brings_answers_back(task, tmp_path):
    """With hard pseudo-labels, none of the data's own: the pruned model comes closer to what the dense one answers."""
    dense = task.fresh(1)
    task.train(dense, 1)
    data = task.calibration(48, 0)
    made = pyprune.prune(dense, {"params": 0.5}, data, recipe="lfpr", samples=16)

    @torch.no_grad()
    def apart(model):
        said, own = (answered(m, task.data["train"], torch.arange(90))[0].flatten(0, 1) for m in (dense, model))
        return float(torch.nn.functional.cross_entropy(own, said.argmax(-1)))

    model, done = pyprune.retrain(made.pruned, dense, data, share=1.0, layers=2, epochs=4, learning_rate=1e-3)
    assert done.stopped == ""
    assert apart(model) < 0.9 * apart(made.pruned)
    model.save_pretrained(tmp_path)
    assert apart(type(dense).from_pretrained(tmp_path)) == pytest.approx(apart(model))


@pytest.mark.parametrize("cotangent", ["answers", "labels"])
def test_another_package_gets_the_losses_of_the_decoder(task, model, cotangent):
    rows = task.calibration(4, seed=0, labels=cotangent == "labels")
    samples, _ = calibration_data(model, None, rows)
    batch = samples.batches()[0]
    losses = TorchPruning(importance="taylor", cotangent=cotangent)._losses(model, batch.on(model))
    assert losses.shape == batch.index.shape
    assert (losses > 0).all()
