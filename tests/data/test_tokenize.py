"""Everything that a user may call data, and what is none."""

import json
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from pyprune.core.batches import Samples
from pyprune.core.errors import InputError
from pyprune.data.tokenize import to_samples

TEXTS = ["a b", "c", "a b c d"]
IDS = [[1, 4, 5, 2], [1, 6, 2], [1, 4, 5, 6, 7, 2]]


def ids_of(samples):
    return [row["input_ids"].tolist() for row in samples.inputs]


def labels_of(samples):
    return None if samples.labels is None else [label.tolist() for label in samples.labels]


def padded(side, **extra):
    """The tokens of TEXTS as one batch, padded with 9 on one side."""
    rows = [torch.tensor(row) for row in IDS]
    ids = torch.nn.utils.rnn.pad_sequence(rows, True, 9, padding_side=side)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(row)).long() for row in rows], True, 0, padding_side=side)
    return {"input_ids": ids, "attention_mask": mask, **extra}


def text_file(folder, tokenizer):
    path = folder / "x.txt"
    path.write_text("a b\n\nc\n \t\na\nb\nc d\n\n\n")
    return path


def jsonl_file(folder, tokenizer):
    path = folder / "x.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS) + "\n")
    return str(path)


KINDS = {
    "texts": lambda *_: TEXTS,
    "generator": lambda *_: (text for text in TEXTS),
    "text file": text_file,
    "jsonl file": jsonl_file,
    "rows of text": lambda *_: [{"text": text, "other": 1} for text in TEXTS],
    "rows of ids": lambda *_: [{"input_ids": row} for row in IDS],
    "padded rows": lambda *_: [{key: value[b] for key, value in padded("right").items()} for b in range(3)],
    "right-padded batch": lambda *_: padded("right"),
    "left-padded batches": lambda *_: [padded("left")],
    "tokenizer output": lambda _, tokenizer: tokenizer(TEXTS),
    "padded tokenizer output": lambda _, tokenizer: tokenizer(TEXTS, padding=True, return_tensors="pt"),
    "data loader": lambda *_: DataLoader([{"input_ids": torch.tensor(row)} for row in IDS], batch_size=1),
    "samples": lambda *_: Samples([{"input_ids": torch.tensor(row)} for row in IDS]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_same_samples(tmp_path, tokenizer, kind):
    samples = to_samples(KINDS[kind](tmp_path, tokenizer), tokenizer, 16)
    assert ids_of(samples) == IDS
    assert samples.labels is None
    assert samples.truncated == 0
    assert all(row["input_ids"].dtype == torch.int64 for row in samples.inputs)


def test_samples_are_returned_as_they_are():
    samples = Samples([{"input_ids": torch.tensor([1])}])
    assert to_samples(samples, None, 4) is samples


def test_padding_uses_the_tokenizers_token(tokenizer):
    (batch,) = to_samples(TEXTS, tokenizer, 16).batches(100, 1.0)
    assert (batch.inputs["input_ids"][~batch.token_mask] == 3).all()


@pytest.mark.parametrize(("length", "truncated"), [(6, 0), (5, 1), (4, 1), (3, 2), (2, 3)])
def test_truncation_is_counted_and_keeps_the_special_tokens(tokenizer, length, truncated):
    samples = to_samples(TEXTS, tokenizer, length)
    assert samples.truncated == truncated
    assert [len(row) for row in ids_of(samples)] == [min(len(row), length) for row in IDS]
    assert all(row[0] == 1 and row[-1] == 2 for row in ids_of(samples))
    tokens = to_samples([{"input_ids": row} for row in IDS], None, length)
    assert tokens.truncated == truncated
    assert ids_of(tokens) == [row[:length] for row in IDS]


SAMPLE_LABELS = [1, 0, 2]
TOKEN_LABELS = [list(range(len(row))) for row in IDS]
VECTORS = [[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]]


@pytest.mark.parametrize("key", ["label", "labels"])
@pytest.mark.parametrize("labels", [SAMPLE_LABELS, VECTORS])
def test_labels_of_texts(tokenizer, key, labels):
    rows = [{"text": text, key: label} for text, label in zip(TEXTS, labels, strict=True)]
    pairs = list(zip(TEXTS, labels, strict=True))
    for data in (rows, pairs):
        assert labels_of(to_samples(data, tokenizer, 16)) == labels


@pytest.mark.parametrize("labels", [SAMPLE_LABELS, TOKEN_LABELS, VECTORS])
def test_labels_of_tokens_are_cut_with_their_tokens(labels):
    rows = [{"input_ids": ids, "labels": label} for ids, label in zip(IDS, labels, strict=True)]
    assert labels_of(to_samples(rows, None, 16)) == labels
    cut = [label[:3] for label in labels] if labels is TOKEN_LABELS else labels
    assert labels_of(to_samples(rows, None, 3)) == cut


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("labels", [SAMPLE_LABELS, TOKEN_LABELS, VECTORS])
def test_labels_of_batches_lose_their_padding(side, labels):
    if labels is TOKEN_LABELS:
        rows = [torch.tensor(row) for row in labels]
        given = torch.nn.utils.rnn.pad_sequence(rows, True, -100, padding_side=side)
    else:
        given = torch.tensor(labels)
    batch = padded(side, labels=given)
    assert labels_of(to_samples([batch], None, 16)) == labels
    single = [{key: value[b] for key, value in batch.items()} for b in range(3)]
    assert labels_of(to_samples(single, None, 16)) == labels


def test_segments_lose_their_padding_too():
    batch = padded("left")
    batch["token_type_ids"] = batch["attention_mask"] * 2
    assert [row["token_type_ids"].tolist() for row in to_samples([batch], None, 16).inputs] == [
        [2] * len(row) for row in IDS
    ]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (7, "expected a path or an iterable of texts, found int"),
        (None, "found NoneType"),
        ([], "no samples"),
        ([3], "a row of type int"),
        ([["a", 1]], "a row of type list"),
        ([("a", 1, 2)], "a row of type tuple"),
        ([{"sentence": "a"}], "a row of type dict"),
        ({"train": ["a"]}, "a row of type dict"),
        (["a", {"input_ids": [1]}], "mixed"),
        ([("a", 1), "b"], "2 samples but 1 labels"),
        ([("a", "yes")], "label must be numbers, found str 'yes'"),
        ([{"input_ids": ["a", "b"]}], "input_ids must be numbers"),
        ([{"input_ids": []}], "a sample has no tokens"),
        ([{"input_ids": [1, 2], "attention_mask": [0, 0]}], "a sample has no tokens"),
        ("no/such/file.txt", "is not a file"),
        (Path("no/such/file.txt"), "is not a file"),
    ],
)
def test_refusals(tokenizer, data, message):
    with pytest.raises(InputError, match=message):
        to_samples(data, tokenizer, 16)


def test_texts_need_a_tokenizer():
    with pytest.raises(InputError, match="need a tokenizer"):
        to_samples(["a"], None, 16)
