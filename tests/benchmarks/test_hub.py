"""The tasks of a hub, on tiny models and rows with the data sets' own columns: nothing here has reached a hub."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tokenizers.processors import TemplateProcessing

import pyprune
from benchmarks.tasks import run
from benchmarks.tasks.hub import base, kinds, source
from benchmarks.tasks.hub.entries import ENTRIES
from benchmarks.tasks.task import DataError, task_names
from pyprune.testing.checkpoints import word_tokenizer
from pyprune.testing.models import tiny_model

WORDS = "a the red blue sign dog cat says what is on left right stop go 2 negative positive sst2 sentence: not"
SQUARE = {"height": 12, "width": 12}
COMMIT = "0123456789abcdef"


def picture(i):
    return Image.fromarray(np.random.default_rng(i).integers(0, 255, (16, 20, 3), dtype=np.uint8))


def answered(i):
    context = "the red sign says stop on the left"
    return {
        "id": f"q{i}",
        "title": "",
        "question": "what says the sign",
        "context": context,
        "answers": {"text": ["stop"], "answer_start": [context.index("stop")]},
    }


def pair(i):
    return {"sentence1": f"the dog is {'not ' * (i % 2)}red", "sentence2": "a dog", "label": i % 2, "idx": i}


def asked(i, **more):
    return {"image": picture(i), "question": "what is " + "the " * (i % 2) + "sign", "question_id": i, **more}


def captioned(i, name):
    return {"image": picture(i), name: ["a cat on the left", "a red dog", "the blue dog"][: 2 + i % 2]}


def scene(i):
    mode = np.random.default_rng(i).integers(0, 3, (16, 20), dtype=np.uint8)
    return {"image": picture(i), "annotation": Image.fromarray(mode), "scene_category": 0}


# A row of the data set, the tiny model and its class, and what its config needs besides.
CASES = {
    "mrpc": (pair, "bert", "AutoModelForSequenceClassification", {}),
    "stsb": (lambda i: {**pair(i), "label": float(i)}, "bert", "AutoModelForSequenceClassification", {"num_labels": 1}),
    "squad": (answered, "bert", "AutoModelForQuestionAnswering", {}),
    "squad_v2": (answered, "bert", "AutoModelForQuestionAnswering", {}),
    "t5_sst2": (
        lambda i: {"sentence": "a red dog" + " is" * (i % 2), "label": i % 2, "idx": i},
        *("t5", "AutoModelForSeq2SeqLM", {}),
    ),
    "t5_squad": (answered, "t5", "AutoModelForSeq2SeqLM", {}),
    "wikitext": (lambda i: {"text": "the dog is on the left " * 5}, "llama", "AutoModelForCausalLM", {}),
    "cifar10": (
        lambda i: {"img": picture(i), "label": i % 10},
        *("vit", "AutoModelForImageClassification", {"num_labels": 10}),
    ),
    "ade20k": (scene, "segformer", "AutoModelForSemanticSegmentation", {"num_labels": 2}),
    "textvqa": (lambda i: asked(i, answers=["stop"] * 2 + ["go"] * 8), "git", "GitForCausalLM", {}),
    "st_vqa": (lambda i: asked(i, answer=["stop"], path=f"{i}.jpg"), "git", "GitForCausalLM", {}),
    "vqav2": (
        lambda i: asked(i, answers=[{"answer": "stop", "answer_confidence": "yes", "answer_id": n} for n in range(10)]),
        *("blip", "AutoModelForVisualQuestionAnswering", {}),
    ),
    "nlvr2": (
        lambda i: {
            **{"left_image": picture(i), "right_image": picture(i + 1).rotate(90, expand=True)},
            **{"question": "a dog is on the left", "answer": str(i % 2 == 0), "question_id": str(i)},
        },
        *("vilt", "ViltForImagesAndTextClassification", {"num_images": 2, "modality_type_vocab_size": 3}),
    ),
    "coco": (lambda i: captioned(i, "sentences_raw"), "blip-caption", "BlipForConditionalGeneration", {}),
    "flickr30k": (lambda i: captioned(i, "caption"), "clip", "AutoModel", {}),
}
LABELLED = ("mrpc", "stsb", "squad", "t5_sst2", "wikitext", "cifar10", "nlvr2")


class Both:
    """What a processor of images and text holds."""

    def __init__(self, tokenizer, images):
        self.tokenizer, self.image_processor = tokenizer, images


def processor_of(variant):
    kind = {"segformer": "Segformer", "vilt": "Vilt"}.get(variant, "ViT")
    size = {"size": {"shortest_edge": 12}, "size_divisor": 4} if kind == "Vilt" else {"size": SQUARE}
    images = getattr(transformers, f"{kind}ImageProcessor")(**size)
    tokenizer = word_tokenizer(WORDS)
    if variant == "bert":
        tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    if variant in ("bert", "t5", "llama"):
        return tokenizer
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return images if variant in ("vit", "segformer") else Both(tokenizer, images)


@pytest.fixture
def made(monkeypatch):
    """Makes the task called `name` as if a hub had 40 rows a split and the tiny model."""

    def make(name, rows=None, entry=None, samples=4, **options):
        row, variant, head, config = CASES[name]

        def load_rows(dataset, config, split, columns, revision=None, seed=None):
            for given in [row(i) for i in range(40)] if rows is None else rows:
                yield {column: given[column] for column in columns}

        monkeypatch.setattr(source, "revision_of", lambda *_: COMMIT)
        monkeypatch.setattr(source, "load_rows", load_rows)
        monkeypatch.setattr(
            source, "from_pretrained", lambda *_: (tiny_model(variant, head, **config), processor_of(variant))
        )
        return kinds.KINDS[ENTRIES[name].kind](name, entry or ENTRIES[name], None, samples, **options)

    return make


@pytest.mark.parametrize("name", ENTRIES)
def test_entries_are_whole(name):
    entry = ENTRIES[name]
    assert entry.kind in kinds.KINDS
    assert entry.train != entry.test or entry.held_out in entry.columns
    assert entry.columns
    assert "/" in entry.train.dataset
    assert name not in task_names()
    if "classification" not in entry.kind and entry.kind not in ("segmentation", "captions"):
        assert entry.length > 0


def test_the_page_names_every_task():
    page = Path(__file__).parents[2] / "docs" / "howto" / "add-a-task.md"
    assert [name for name in ENTRIES if f"`{name}`" not in page.read_text(encoding="utf-8")] == []


def test_every_kind_is_pruned_below():
    assert {ENTRIES[name].kind for name in CASES} == {entry.kind for entry in ENTRIES.values()} == kinds.KINDS.keys()


@pytest.mark.parametrize("name", CASES)
def test_a_task_is_pruned_and_measured(made, name):
    task = made(name)
    dense = task.dense()
    assert dense.report["key"] == f"{task.checkpoint}@local on {ENTRIES[name].test.dataset}@01234567, first 4"
    recipe = pyprune.LFPR() if isinstance(task, base.Writer) else pyprune.Kwon(tuning="none")
    (row,) = run.measure(task, dense, recipe, "params", 0.5, samples=8, repeats=1)
    assert 0.3 < row.achieved <= 0.5
    assert (row.dense, row.metric) == (dense.report["test"], ENTRIES[name].metric)
    assert math.isfinite(row.pruned)
    assert task.evaluate(dense.model) == row.dense


@pytest.mark.parametrize("name", LABELLED)
def test_labels_are_what_pyprune_takes(made, name):
    task = made(name)
    data = task.calibration(8, seed=0, labels=True)
    scores = pyprune.score(task.model, data, recipe=pyprune.Kwon(cotangent="labels"), tokenizer=task.tokenizer)
    assert all(torch.isfinite(s).all() for s in scores.values.values())


def constant(model, value):
    """All logits are those of the last layer's bias, whose entry `value` is the largest."""
    head = [m for m in model.modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))][-1]
    head.weight.data.zero_()
    if head.bias is not None:
        head.bias.data = torch.nn.functional.one_hot(torch.tensor(value), len(head.bias)).float()
    return model


def test_classes_of_text_and_images(made):
    for name, right in (("mrpc", 0.5), ("cifar10", 0.1), ("nlvr2", 0.5)):
        task = made(name, samples=20)
        assert task.evaluate(constant(task.model, 1)) == pytest.approx(right), name


def test_uniform_guesses_are_as_perplexing_as_the_vocabulary(made):
    task = made("wikitext", samples=3, entry=replace(ENTRIES["wikitext"], options={"between": " stop "}))
    assert task.evaluate(constant(task.model, 0)) == pytest.approx(99)
    inputs = [own["input_ids"].tolist() for own, _ in task.tested()]
    words = " stop ".join(["the dog is on the left " * 5] * 40).split()[: 3 * 40]
    assert inputs == torch.tensor(ids_of(task, " ".join(words))).view(3, 40).tolist()


def test_the_last_and_the_whole_of_a_map(made):
    """Half of what is annotated is of the class that is found everywhere; what is 0 does not count."""
    annotation = Image.fromarray(np.array([[0, 1, 1], [2, 2, 2], [1, 0, 0]], dtype=np.uint8))
    rows = [{"image": picture(0), "annotation": annotation}] * 3
    task = made("ade20k", rows=rows, samples=3)
    assert task.evaluate(constant(task.model, 1)) == pytest.approx((0 + 3 / 6) / 2)


def ids_of(task, text):
    return task.tokenizer(text, add_special_tokens=False)["input_ids"]


class Written(torch.nn.Module):
    """Generates the words of `said`, and remembers what it was given."""

    def __init__(self, task, said):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.said = torch.tensor([*ids_of(task, said), 2, 1])  # end, padding
        self.behind, self.given = task.prompted, []

    def generate(self, **inputs):
        self.given.append(inputs)
        text = inputs.get("input_ids")
        said = self.said.expand(len(next(iter(inputs.values()))), -1)
        return torch.cat([text, said], 1) if self.behind and text is not None else said


@pytest.mark.parametrize(
    ("name", "said", "figure"),
    [
        ("textvqa", "stop", 0.6),
        ("st_vqa", "stop", 1.0),
        ("vqav2", "go", 0.0),
        ("t5_sst2", "positive", 0.5),
        ("t5_squad", "stop go", 2 / 3),
        ("coco", "blue", None),
    ],
)
def test_what_is_written_is_compared_without_what_was_asked(made, name, said, figure):
    task = made(name, samples=10)
    model = Written(task, said)
    found = task.evaluate(model)
    assert 0 < found < 5 if figure is None else found == pytest.approx(figure)
    assert all(given.items() >= ENTRIES[name].generation.items() for given in model.given)
    assert all(mask.all() for mask in (given["attention_mask"] for given in model.given if "input_ids" in given))


def test_questions_of_git_begin_its_text_and_end_in_the_answer_it_learns(made):
    task = made("textvqa")
    rows = task.calibration(8, seed=0)
    questions = [[0, *ids_of(task, text)] for text in ("what is sign", "what is the sign")]
    assert sorted({tuple(row["input_ids"].tolist()) for row in rows}) == sorted(map(tuple, questions))
    task._pretrained[0].generate = Written(task, "stop go").generate
    learned = task.recovery(8, seed=0)
    assert {tuple(row["input_ids"][-3:].tolist()) for row in learned} == {(*ids_of(task, "stop go"), 2)}
    assert sorted(len(row["input_ids"]) for row in learned) == sorted(len(row["input_ids"]) + 3 for row in rows)


def test_each_split_is_read_for_its_own_purpose(made, monkeypatch):
    task, read = made("mrpc"), []
    row, entry = pair(0), ENTRIES["mrpc"]

    def load_rows(*given):
        read.append(given)
        return iter([row] * 20)

    monkeypatch.setattr(source, "load_rows", load_rows)
    columns = ["sentence1", "sentence2", "label"]
    assert len(task.calibration(8, seed=3)) == 8
    assert read.pop() == (entry.train.dataset, "mrpc", "train", columns, None, 3)
    task.evaluate(task.model)
    assert read == [(entry.test.dataset, "mrpc", "validation", columns, None, None)]


def test_retraining_takes_what_recovery_gives(made):
    task = made("textvqa")
    options = {"recoveries": [{"share": 1.0, "layers": 1}], "recovery_samples": 8, "repeats": 1}
    (row,) = run.measure(task, task.dense(), pyprune.LFPR(), "params", 0.5, samples=8, **options)
    assert row.recovered is not None


def spans(starts, ends):
    """A model whose largest logits of a start and of an end are at these tokens, (token, logit), window by window."""

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, input_ids, token_type_ids):
            logits = torch.zeros(2, *input_ids.shape)
            for part, places in zip(logits, (starts, ends), strict=True):
                for own, place in zip(part, places, strict=True):
                    for token, logit in place.items():
                        own[token] = logit
            return SimpleNamespace(start_logits=logits[0], end_logits=logits[1])

    return Model()


# Windows of 4 tokens of the question and 6 of the context, which overlap in 4; "stop" is token 8, then token 6.
WINDOWED = {"length": 10, "options": {"stride": 4, "longest": 30, "null": False}}


@pytest.mark.parametrize(
    ("name", "starts", "ends", "f1"),
    [
        ("squad", [{}, {6: 2}], [{}, {6: 2}], 1.0),
        ("squad", [{8: 3}, {6: 2}], [{9: 3}, {6: 2}], 2 / 3),  # "stop on" of the first window scores higher
        ("squad", [{2: 9}, {6: 1}], [{3: 9}, {6: 1}], 1.0),  # words of the question are no answer
        ("squad", [{}, {7: 9, 6: 8}], [{}, {5: 9, 6: 8}], 1.0),  # nor are ends before starts
        ("squad_v2", [{0: 9}, {0: 1, 6: 2}], [{}, {6: 2}], 1.0),  # "nothing" has to score higher in all windows
        ("squad_v2", [{0: 9}, {0: 5, 6: 2}], [{}, {6: 2}], 0.0),
    ],
)
def test_spans_of_windows(made, name, starts, ends, f1):
    entry = replace(ENTRIES[name], **WINDOWED)
    entry = replace(entry, options={**entry.options, "null": ENTRIES[name].options["null"]})
    context = "the red sign says stop on the left"
    task = made(name, rows=[{**answered(0), "context": context}], entry=entry)
    (first, window), (second, _) = task.tested()
    assert [task.tokenizer.decode(own["input_ids"][4:]) for own in (first, second)] == [
        "the red sign says stop on",
        "sign says stop on the left",
    ]
    assert first["token_type_ids"].tolist() == [0] * 4 + [1] * 6
    assert window.answers["text"] == ["stop"]
    assert task.evaluate(spans(starts, ends)) == pytest.approx(f1)
    assert [task.labelled(*own)["labels"] for own in task.tested()] == [[8, 8], [6, 6]]


def test_windows_count_as_one_question_and_some_have_no_answer(made):
    nothing = {**answered(1), "answers": {"text": [], "answer_start": []}}
    task = made("squad_v2", rows=[nothing, answered(2)], samples=1, entry=replace(ENTRIES["squad_v2"], **WINDOWED))
    assert len(list(task.tested())) == 2
    assert [task.labelled(*own)["labels"] for own in task.tested()] == [[0, 0], [0, 0]]


def test_a_tenth_of_the_images_is_held_out(made):
    task = made("st_vqa", rows=[asked(i, answer=["stop"], path=f"{i // 2}.jpg") for i in range(200)], samples=None)
    names = {split: [row["name"] for row in task.stream(split)] for split in ("train", "test")}
    assert len(names["train"]) + len(names["test"]) == 200
    assert set(names["train"]).isdisjoint(names["test"])
    assert 4 <= len(set(names["test"])) <= 20


def test_batches_hold_samples_of_equal_shapes_and_few_wait():
    lengths = [1, 2, 1, 2, 3, 1]
    found = list(base.batches((({"x": torch.zeros(n)}, i) for i, n in enumerate(lengths)), 2))
    assert [(inputs["x"].shape, truths) for inputs, truths in found] == [
        ((2, 1), [0, 2]),
        ((2, 2), [1, 3]),
        ((1, 3), [4]),
        ((1, 1), [5]),
    ]
    taken = []
    samples = (({"x": torch.zeros(n)}, taken.append(n)) for n in range(100))
    next(base.batches(samples, 2))
    assert len(taken) == 16


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("mini_imagenet", {}, "mini_imagenet: there is no checkpoint that everyone uses; .*--model ID"),
        ("digits", {}, "--task digits: with --hub choose one of cola, mnli"),
        ("sst2", {"samples": 0}, "--hub-samples 0"),
    ],
)
def test_what_is_not_there_is_named(name, options, reason):
    with pytest.raises(DataError, match=reason):
        kinds.find(name, **options)


def test_splits_and_classes_have_to_be_there(made):
    with pytest.raises(DataError, match="mrpc: its train split has no rows"):
        made("mrpc", rows=[])
    task = made("cifar10", rows=[{"img": picture(0), "label": 10}])
    with pytest.raises(DataError, match=r"cifar10: an image is of class 10, and nateraw/.* has 10 classes"):
        task.dense()
    with pytest.raises(DataError, match=r"ade20k: an image is of class 2, and nvidia/.* has 2 classes"):
        made("ade20k", rows=[{**scene(0), "annotation": Image.new("L", (3, 2), 3)}]).dense()
    with pytest.raises(DataError, match="calibration with labels is not for captions"):
        made("coco").calibration(4, seed=0, labels=True)


def test_the_command_adds_a_row_that_tells_what_was_measured(made, tmp_path, monkeypatch, capsys):
    task = made("mrpc", samples=3)
    asked_for = []
    monkeypatch.setattr(run.hub, "find", lambda *given: asked_for.append(given) or task)
    command = f"--hub --task mrpc --model some/bert --hub-samples 3 --results {tmp_path / 't.csv'} --threads 1"
    pruned = f"{command} --recipe kwon --set tuning=none --budget params=0.5 --samples 8"
    assert run.main(pruned.split()) == 0
    assert asked_for == [("mrpc", "some/bert", 3, "cpu")]
    (row,) = run.results.read(tmp_path / "t.csv")
    assert (row.task, row.settings, row.metric) == ("mrpc", "tuning=none hub-samples=3", "accuracy")
    assert row.model.endswith("on nyu-mll/glue@01234567, first 3")
    assert run.main([*command.split(), "--dense"]) == 0
    assert "test: " in capsys.readouterr().out
