"""The harness itself: order, inputs, percentiles, and the merging of result rows."""

import time

import pytest

from pyprune.bench.results import COLUMNS, Results, read
from pyprune.bench.timing import Timing, interleave
from pyprune.core.errors import InputError


def test_every_round_calls_every_function_once_and_every_call_has_the_next_input():
    calls = []
    record = {name: lambda x, name=name: calls.append((name, x)) for name in "abc"}
    timings = interleave(record, repeats=4, warmup=2, inputs=[(1,), (2,)])
    rounds = [calls[i : i + 3] for i in range(0, 18, 3)]
    assert len(calls) == 18
    assert [{name for name, _ in r} for r in rounds] == [set("abc")] * 6
    assert [[x for _, x in r] for r in rounds] == [[1, 2, 1], [2, 1, 2]] * 3
    assert [r[0][0] for r in rounds] == list("abcabc")
    assert all(len(timings[name].samples) == 4 for name in "abc")


def test_slower_is_slower():
    timings = interleave({"slow": lambda: time.sleep(0.01), "fast": lambda: None}, repeats=3)
    assert timings["slow"].p20 >= 0.01 > timings["fast"].median


def test_percentiles():
    timing = Timing.of([5.0, 1.0, 2.0, 4.0, 3.0, 6.0])
    assert (timing.p20, timing.median, timing.p80) == (2.0, 3.5, 5.0)


@pytest.mark.parametrize("kwargs", [{"functions": {}}, {"repeats": 0}, {"inputs": []}])
def test_nothing_to_time(kwargs):
    with pytest.raises(InputError, match="interleave"):
        interleave(**{"functions": {"a": lambda: None}, **kwargs})


def test_rows_are_merged_by_key(tmp_path):
    path = tmp_path / "results" / "device.csv"
    first = Results("speed", path=path)
    first.add("32x128", "eager", "ms", 2.5)
    first.add("32x128", "kernel", "ms", 1 / 3)
    first.write()
    second = Results("speed", path=path)
    second.add("32x128", "eager", "ms", 2.0)
    second.add("1x128", "eager", "ms", 0.1)
    second.write()
    rows = read(path)
    assert tuple(rows[0]) == COLUMNS
    assert [(r["case"], r["provider"], r["value"]) for r in rows] == [
        ("32x128", "eager", "2"),
        ("32x128", "kernel", "0.333333"),
        ("1x128", "eager", "0.1"),
    ]
    assert not list(path.parent.glob("*.partial"))


def test_default_file_needs_the_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results = Results("speed")
    assert results._common["commit"] == "unknown"
    with pytest.raises(InputError, match="repository's root"):
        results.write()
