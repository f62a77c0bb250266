"""The task's data, its split and its fine-tuning, on 2,000 committed rows of the Debian archive.

The rows come from `python -m benchmarks.tasks.debian_sections.data --slice 2000` on Debian 12.
"""

import random
import subprocess
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, BertConfig, BertModel, BertTokenizerFast

import pyprune
from benchmarks.rows import mean_std, read_rows
from benchmarks.tasks import run
from benchmarks.tasks.debian_sections import accuracy as table
from benchmarks.tasks.debian_sections import data, evaluate, finetune
from benchmarks.tasks.debian_sections.data import DataError, Record
from benchmarks.tasks.debian_sections.report import section
from benchmarks.tasks.debian_sections.task import DebianSections

SLICE = Path(__file__).parents[1] / "data" / "debian_sections_2000.tsv"
# fmt: off
LABELS = [
    "admin", "devel", "doc", "games", "gnu-r", "golang", "haskell", "java", "javascript", "libdevel",
    "libs", "net", "perl", "python", "ruby", "rust", "science", "text", "utils", "x11",
]
# fmt: on


@pytest.fixture(scope="module")
def task():
    return data.load(SLICE)


def rows(task):
    return [*task.train, *task.dev, *task.test]


def test_slice_is_as_it_was(task):
    assert task.sha256 == "f4bebae8ceb52f5d9e5826096cec728b1040f8aa6f10caae1d2125fac6815cf0"
    assert list(task.labels) == LABELS
    assert (len(task.train), len(task.dev), len(task.test)) == (1304, 150, 156)


def test_no_name_and_no_text_stands_twice(task):
    names = [r.name for r in rows(task)]
    texts = [data.normalised(r.text) for r in rows(task)]
    assert len(set(names)) == len(names)
    assert len(set(texts)) == len(texts)


def test_order_of_the_records_does_not_matter(task):
    records = data.read_tsv(SLICE)
    random.Random(0).shuffle(records)
    assert data.build(records) == task


def test_split_depends_on_the_name_alone(task):
    half = data.build(data.read_tsv(SLICE)[::2], sections=5)
    whole = {r.name: split for split in ("train", "dev", "test") for r in getattr(task, split)}
    common = [(r.name, split) for split in ("train", "dev", "test") for r in getattr(half, split) if r.name in whole]
    assert len(common) > 300
    assert all(whole[name] == split for name, split in common)


def test_duplicates_leave_their_smallest_name():
    records = [
        Record("b", "net", "A tool - documentation"),
        Record("a", "doc", "a TOOL (documentation)"),
        Record("c", "net", "another tool"),
        Record("c", "net", "another tool"),
    ]
    assert sorted(r.name for r in rows(data.build(records))) == ["a", "c"]


def test_parse_reads_dumpavail():
    dump = (
        "Package: one\nSection: contrib/net\nDescription: first  tool\nTag: role::program,\n use::chat\n\n"
        "Package: two\nSection: utils\nDescription-en: second tool\n long text\n\n"
        "Package: three\nDescription: no section\n\n"
    )
    assert data.parse(dump) == [Record("one", "net", "first tool"), Record("two", "utils", "second tool")]


def test_slice_round_trips(task, tmp_path):
    records = data.read_tsv(SLICE)
    assert data.sliced(reversed(records), 2000) == records
    assert data.sliced(records, 10) == data.sliced(data.sliced(records, 100), 10)


@pytest.mark.parametrize(("stdout", "hint"), [(b"", 'run "apt-get update"'), (None, "apt-cache is not installed")])
def test_missing_package_lists_say_what_to_do(monkeypatch, stdout, hint):
    def run(command, **_):
        if stdout is None:
            raise FileNotFoundError(command[0])
        return subprocess.CompletedProcess(command, 0, stdout, b"")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(DataError, match=hint) as caught:
        data.available()
    assert "\n" not in str(caught.value)


def test_broken_tsv_is_named(tmp_path):
    (tmp_path / "rows.tsv").write_text("name\tsection\n")
    with pytest.raises(DataError, match=r"rows\.tsv"):
        data.read_tsv(tmp_path / "rows.tsv")
    with pytest.raises(DataError, match=r"none\.tsv"):
        data.read_tsv(tmp_path / "none.tsv")


@pytest.fixture(scope="module")
def base(task, tmp_path_factory):
    """A tiny random BERT encoder with a word-level vocabulary, in the form in which MiniLM comes."""
    directory = tmp_path_factory.mktemp("base")
    words = sorted({word for r in task.train for word in data.normalised(r.text).split()})
    (directory / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    tokenizer = BertTokenizerFast(str(directory / "vocab.txt"))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words) + 5, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    BertModel(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory)


def test_batches_hold_every_sample_once_and_no_needless_mask(task, base):
    tokenizer = finetune.AutoTokenizer.from_pretrained(base)
    encoded = evaluate.encode(task.dev, task, tokenizer)
    seen = []
    for inputs, labels in evaluate.batches(encoded, 16, torch.Generator().manual_seed(0)):
        mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))
        assert (mask.sum(1).min() < mask.shape[1]) == ("attention_mask" in inputs)
        real = [row[keep.bool()].tolist() for row, keep in zip(inputs["input_ids"], mask, strict=True)]
        seen += zip(real, labels.tolist(), strict=True)
    expected = list(zip(encoded.ids, encoded.labels.tolist(), strict=True))
    assert sorted(seen) == sorted(expected)


def test_finetune_learns_is_cached_and_repeats(task, base, tmp_path, monkeypatch):
    recipe = finetune.Recipe(epochs=4, batch=64, lr=1e-2)
    first = finetune.finetuned(task, base, recipe, tmp_path / "one")
    # The most frequent section holds 13 % of the test split.
    assert first.report["test_accuracy"] > 0.25
    encoded = evaluate.encode(task.test, task, first.tokenizer)
    assert evaluate.accuracy(first.model, encoded) == first.report["test_accuracy"]
    assert AutoConfig.from_pretrained(first.directory).id2label == dict(enumerate(LABELS))

    again = finetune.finetuned(task, base, recipe, tmp_path / "two")
    weights = again.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in first.model.state_dict().items())

    monkeypatch.setattr(finetune, "train", lambda *_: pytest.fail("trained again"))
    cached = finetune.finetuned(task, base, recipe, tmp_path / "one")
    assert cached.directory == first.directory
    assert sorted(p.name for p in first.directory.parent.iterdir()) == [first.directory.name]


def test_interrupted_finetune_leaves_no_cache_entry(task, base, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(finetune, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        finetune.finetuned(task, base, finetune.Recipe(), tmp_path)
    assert list((tmp_path / "debian_sections").iterdir()) == []


def test_accuracy_counts_right_answers(task, base):
    tokenizer = finetune.AutoTokenizer.from_pretrained(base)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=20).eval()
    encoded = evaluate.encode(task.test, task, tokenizer)
    model.classifier.weight.data.zero_()
    model.classifier.bias.data = torch.nn.functional.one_hot(torch.tensor(LABELS.index("perl")), 20).float()
    share = sum(r.section == "perl" for r in task.test) / len(task.test)
    assert evaluate.accuracy(model, encoded) == pytest.approx(share)


@pytest.fixture(scope="module")
def classifier(base):
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=20).eval()
    return model, finetune.AutoTokenizer.from_pretrained(base)


def test_table_has_every_method_and_scores_once_a_cotangent(task, classifier, monkeypatch):
    model, tokenizer = classifier
    scored = []
    monkeypatch.setattr(
        pyprune, "score", lambda *args, _score=pyprune.score, **kw: scored.append(args[1]) or _score(*args, **kw)
    )
    encoded = evaluate.encode(task.test, task, tokenizer)
    data = table.calibration(task, 32, seed=0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    points = list(table.measure(model, tokenizer, data, encoded, seed=0, budgets=(0.7, 0.5)))
    assert [(p.method, p.budget) for p in points] == [(m, b) for m in table.METHODS for b in (0.7, 0.5)]
    assert all(0 <= p.accuracy <= 1 for p in points)
    texts = [text for text, _ in data]
    # random, magnitude, then fisher and surgeon: labels are read by the cotangent of that name alone
    assert scored == [texts, texts, data, data, texts, texts]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_whole_budget_is_the_dense_model(task, classifier):
    model, tokenizer = classifier
    encoded = evaluate.encode(task.test, task, tokenizer)
    data = table.calibration(task, 16, seed=0)
    points = table.measure(model, tokenizer, data, encoded, seed=0, methods=table.METHODS[:3], budgets=(1.0,))
    assert {p.accuracy for p in points} == {evaluate.accuracy(model, encoded)}


def test_calibration_is_drawn_from_the_training_split_by_seed(task):
    drawn = table.calibration(task, 100, seed=1)
    assert drawn == table.calibration(task, 100, seed=1) != table.calibration(task, 100, seed=2)
    assert len(set(drawn)) == 100
    assert set(drawn) <= {(r.text, task.label(r)) for r in task.train}


def test_command_writes_rows_that_the_report_shows(base, tmp_path, monkeypatch):
    command = f"accuracy --tsv {SLICE} --base {base} --cache {tmp_path} --results {tmp_path / 'here.csv'} --threads 1"
    command += " --samples 16 --budgets 0.5 --seeds 0 1 --methods random"
    monkeypatch.setattr("sys.argv", command.split())
    table.main()
    rows = {(row.provider, row.case.get("seed")): row for row in read_rows(tmp_path)}
    assert set(rows) == {("dense", None), ("random", "0"), ("random", "1")}
    assert {row.case["data"] for row in rows.values()} == {"f4bebae8ceb5"}
    lines = section(list(rows.values()), tmp_path / "plots")
    means = mean_std([100 * rows["random", seed].value for seed in "01"])
    assert f"| random | not used | {means} | 2 |" in lines


def test_the_runner_prunes_and_measures(base, tmp_path):
    task = DebianSections(SLICE, base, finetune.Recipe(epochs=1, batch=64, lr=1e-2))
    dense = task.dense(seed=1, cache=tmp_path)
    assert task.dense(seed=1, cache=tmp_path).report["key"] == dense.report["key"]
    assert dense.report["test"] == task.evaluate(dense.model) != task.evaluate(dense.model, "dev")
    texts = task.calibration(8, seed=0)
    labelled = task.calibration(8, seed=0, labels=True)
    assert [text for text, _ in labelled] == texts
    recipe = pyprune.Kwon(cotangent="labels", tuning="none")
    options = {"samples": 16, "recoveries": [{"method": "full", "targets": "soft"}], "seed": 3, "repeats": 1}
    task.recovery = lambda samples, seed, labels=False: texts
    (row,) = run.measure(task, dense, recipe, "params", 0.5, **options)
    assert (row.task, row.recipe, row.resource, row.seed, row.samples) == ("debian_sections", "kwon", "params", 3, 16)
    assert 0.3 < row.achieved <= 0.5
    assert row.params < row.dense_params
    assert row.flops < row.dense_flops
    assert row.dense == dense.report["test"]
    assert {0 <= value <= 1 for value in (row.pruned, row.recovered)} == {True}
    assert min(row.dense_ms, row.pruned_ms) > 0
    stages = [word.partition("=")[0] for word in row.seconds.split()]
    assert stages == ["load", "score", "plan", "slice", "tune", "recover"]
    assert stages == [word.partition("=")[0] for word in row.peak_mib.split()]
