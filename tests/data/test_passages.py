"""Passages: what a file holds, and how it is split."""

import json

import pytest

from pyprune.core.errors import InputError
from pyprune.data.passages import python_reference, read_passages, split


def test_text_is_split_at_blank_lines_and_joined_within(tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes(b"one\r\ntwo\r\n\r\n\r\nthree   four\r\n \t\r\nfive\r\n\r\n")
    assert read_passages(path) == ["one two", "three four", "five"]


def test_repeated_passages_count_once_in_their_first_order(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("b\n\na\n\nb\n\nc")
    assert read_passages(path) == ["b", "a", "c"]


def test_jsonl_lines_may_hold_any_character(tmp_path):
    # JSON allows the Unicode line separators inside strings; they end no line of the file.
    texts = ["a\u2028b", "c\x85d", "e\nf", "ü"]
    path = tmp_path / "x.jsonl"
    path.write_text(
        "".join(json.dumps({"text": t, "n": 1}, ensure_ascii=False) + "\n" for t in texts), encoding="utf-8"
    )
    assert read_passages(path) == texts


@pytest.mark.parametrize("name", ["x.txt", "x.jsonl"])
def test_a_byte_order_mark_is_no_text(tmp_path, name):
    path = tmp_path / name
    path.write_text('{"text": "a"}', encoding="utf-8-sig")
    assert read_passages(path) == ["a" if name == "x.jsonl" else '{"text": "a"}']


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", b"", "holds no text"),
        ("x.txt", b" \n\n \n", "holds no text"),
        ("x.txt", b"abc\xff", r"not UTF-8 text \(byte 3\)"),
        ("x.txt", b"abc\x00def", "binary file"),
        ("x.jsonl", b'{"text": "a"}\n{"text": ', "line 2 is not JSON"),
        ("x.jsonl", b'{"text": "a"}\n\n["a"]', "line 3 is not an object"),
        ("x.jsonl", b'{"texts": "a"}', 'line 1 has no "text"'),
        ("x.jsonl", b'{"text": 3}', 'line 1 has no "text"'),
    ],
)
def test_unusable_files_are_named(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"{name}.*{message}"):
        read_passages(path)


@pytest.mark.parametrize("path", ["missing.txt", ""])
def test_no_file(tmp_path, path):
    with pytest.raises(InputError, match="is not a file"):
        read_passages(tmp_path / path)


@pytest.mark.parametrize(
    ("passages", "samples", "calibration", "held_out"),
    [(100, 10, 10, 10), (20, 10, 10, 10), (19, 10, 10, 4), (8, 512, 6, 2), (3, 10, 2, 1), (2, 1, 1, 1), (2, 9, 1, 1)],
)
def test_calibration_and_held_out_do_not_meet(passages, samples, calibration, held_out):
    texts = [f"p{i}" for i in range(passages)]
    first, second = split(texts, samples, seed=0)
    assert (len(first), len(second)) == (calibration, held_out)
    assert len({*first, *second}) == calibration + held_out
    assert {*first, *second} <= set(texts)


def test_the_seed_decides():
    texts = [f"p{i}" for i in range(50)]
    assert split(texts, 10, seed=3) == split(texts, 10, seed=3)
    assert split(texts, 10, seed=3) != split(texts, 10, seed=4)
    assert texts == [f"p{i}" for i in range(50)]


@pytest.mark.parametrize(("texts", "samples", "message"), [(["a"], 1, "two samples"), (["a", "b"], 0, "samples=0")])
def test_what_cannot_be_split(texts, samples, message):
    with pytest.raises(InputError, match=message):
        split(texts, samples, 0)


def test_pythons_own_prose():
    passages = python_reference()
    assert len(passages) > 1000
    assert len(set(passages)) == len(passages)
    assert all(len(p) > 60 and "\n" not in p for p in passages)
