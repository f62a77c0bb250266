"""Rows and models of a hub, and what is said when they cannot be had: with a stand-in for the package `datasets`."""

import sys
from types import ModuleType, SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub.errors import OfflineModeIsEnabled

from benchmarks.tasks import run
from benchmarks.tasks.hub import source
from benchmarks.tasks.task import DataError
from pyprune.testing.checkpoints import tiny_checkpoint

COMMIT = "0123456789abcdef"


@pytest.fixture
def datasets(monkeypatch):
    """The package, with one data set that is loaded as `loaded` says."""
    module = ModuleType("datasets")
    module.__spec__ = SimpleNamespace()
    module.calls = []

    class Stream(list):
        column_names = None

        def select_columns(self, columns):
            return Stream({name: row[name] for name in columns} for row in self)

        def shuffle(self, seed, buffer_size):
            return Stream(reversed(self))

    def load_dataset(dataset, **options):
        module.calls.append({"dataset": dataset, **options})
        if isinstance(module.rows, Exception):
            raise module.rows
        return Stream(module.rows)

    module.rows = [{"text": "one", "label": 0, "idx": 0}, {"text": "two", "label": 1, "idx": 1}]
    module.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)
    return module


def test_rows_come_as_a_stream_of_the_columns_that_are_asked_for(datasets):
    rows = [{"text": "one", "label": 0}, {"text": "two", "label": 1}]
    assert list(source.load_rows("some/set", "part", "train", ["text", "label"])) == rows
    assert list(source.load_rows("some/set", None, "en/*.gz", ["text", "label"], "other", seed=1)) == rows[::-1]
    assert datasets.calls == [
        {"dataset": "some/set", "name": "part", "split": "train", "revision": None, "streaming": True},
        {
            **{"dataset": "some/set", "data_files": {"train": "en/*.gz"}, "split": "train"},
            **{"revision": "other", "streaming": True},
        },
    ]


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (None, "some/set: no columns answer; there are text, label, idx"),
        (FileNotFoundError("Dataset 'some/set' is a gated dataset on the Hub."), "some/set is gated: .*hf auth login"),
        (ConnectionError("\nno route\nat all"), "some/set cannot be had: no route$"),
        (ValueError("Unknown split 'x'."), "some/set cannot be had: Unknown split 'x'"),
    ],
)
def test_rows_that_cannot_be_had_are_one_line(datasets, rows, reason):
    datasets.rows = rows or datasets.rows
    with pytest.raises(DataError, match=reason):
        next(source.load_rows("some/set", None, "train", ["text", "answer"]))


def test_no_package_and_no_hub_are_one_line_and_nothing_is_written(datasets, monkeypatch, tmp_path, capsys):
    def unreachable(*_, **__):
        raise OfflineModeIsEnabled("offline mode")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    command = ["--hub", "--task", "sst2", "--results", str(tmp_path / "t.csv")]
    assert run.main(command) == 2
    assert capsys.readouterr().err == "error: --hub: no hub can be reached for nyu-mll/glue (offline mode)\n"
    monkeypatch.setattr(source.importlib.util, "find_spec", lambda name: None)
    assert run.main(command) == 2
    assert capsys.readouterr().err == "error: --hub needs the package datasets: pip install datasets\n"
    assert list(tmp_path.iterdir()) == []


def test_a_hub_that_answers_gives_the_commit(datasets, monkeypatch):
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: SimpleNamespace(sha=COMMIT))
    assert source.revision_of("some/set") == COMMIT


def test_models_are_of_the_class_that_their_config_names(tmp_path):
    folder = tiny_checkpoint(tmp_path / "model", "bert", "AutoModelForQuestionAnswering")
    model, tokenizer = source.from_pretrained(str(folder), "float32")
    assert type(model).__name__ == "BertForQuestionAnswering"
    assert not model.training
    assert tokenizer("w1")["input_ids"]
    with pytest.raises(DataError, match=r"none cannot be had: "):
        source.from_pretrained(str(tmp_path / "none"), "float32")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("--task sst2", "--task sst2: with --hub; without it choose one of debian_sections"),
        ("--task nosuch", "--task nosuch: choose one of debian_sections"),
        ("--task digits --model some/model", "--model and --hub-samples are for the tasks of --hub"),
        ("--task digits --hub-samples 5", "--model and --hub-samples are for the tasks of --hub"),
        ("--hub --task digits", "--task digits: with --hub choose one of cola"),
    ],
)
def test_names_belong_to_one_of_the_two(words, reason, capsys):
    assert run.main(words.split()) == 2
    assert capsys.readouterr().err.startswith(f"error: {reason}")
