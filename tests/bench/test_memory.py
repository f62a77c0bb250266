"""peak_memory: the worst moment, not the end; what was freed and what was there before do not count."""

import pytest
import torch

from pyprune.bench import memory
from pyprune.bench.memory import peak_memory
from pyprune.core.errors import InputError

# Of the host's memory: on a CUDA machine peak_memory speaks of the device's.
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="measures the device's memory here")
MIB = 1 << 20
# Large enough that the C library returns it when it is freed, and that the interpreter's own pages do not matter.
SIZE = 256 * MIB


def block():
    return bytearray(b"\1") * SIZE


def near(found, expected):
    return expected * 0.98 <= found <= expected * 1.05


def test_the_peak_counts_and_not_the_end():
    def rise_and_fall():
        first = block()
        del first
        return None

    assert near(peak_memory(rise_and_fall), SIZE)


def test_two_at_once_count_twice_and_one_after_another_once():
    def together():
        return block(), block()

    def in_turn():
        for _ in range(2):
            block()

    assert near(peak_memory(together), 2 * SIZE)
    assert near(peak_memory(in_turn), SIZE)


def test_what_was_there_before_does_not_count():
    held = block()
    assert peak_memory(lambda: None) < SIZE // 16
    assert near(peak_memory(block), SIZE)
    del held


def test_an_earlier_peak_does_not_count():
    peak_memory(lambda: (block(), block()))
    assert near(peak_memory(block), SIZE)


def test_says_where_it_cannot_measure(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_RESET", tmp_path / "absent" / "clear_refs")
    with pytest.raises(InputError, match="needs CUDA or a writable"):
        peak_memory(lambda: None)
