"""Batches of samples that are alike."""

import pytest
import torch

from pyprune.core.batches import Samples
from pyprune.recovery.grouped_batches import GroupedBatches


def texts(lengths):
    return Samples([{"input_ids": torch.ones(n, dtype=torch.int64)} for n in lengths])


def images(sides):
    return Samples([{"pixel_values": torch.zeros(3, side, side)} for side in sides])


def test_an_epoch_takes_each_sample_once_and_is_drawn_by_seed_and_epoch():
    samples = texts([5] * 64)
    batches = GroupedBatches(samples, 8, seed=0)
    first = list(batches)
    assert sorted(s for batch in first for s in batch) == list(range(64))
    assert len(first) == len(batches) == 8
    assert first == list(GroupedBatches(samples, 8, seed=0))
    assert first != list(GroupedBatches(samples, 8, seed=1))
    batches.set_epoch(1)
    assert first != list(batches)


def test_like_lengths_are_together_and_in_random_order():
    lengths = torch.randint(1, 100, (256,), generator=torch.Generator().manual_seed(0)).tolist()
    batches = list(GroupedBatches(texts(lengths), 8, seed=0))
    padding = sum(8 * max(lengths[s] for s in batch) - sum(lengths[s] for s in batch) for batch in batches)
    assert padding < 0.05 * sum(lengths)  # of random batches a third and more
    longest = [max(lengths[s] for s in batch) for batch in batches]
    assert longest not in (sorted(longest), sorted(longest, reverse=True))


@pytest.mark.parametrize("batch", [4, 16])
def test_shapes_are_never_mixed_and_all_batches_are_full(batch):
    sides = [[4, 8, 8, 16, 8][s % 5] for s in range(63)] + [32]
    own = GroupedBatches(images(sides), batch, seed=0)
    batches = list(own)
    assert len(batches) == len(own)
    assert {len(b) for b in batches} == {batch}
    assert all(len({sides[s] for s in b}) == 1 for b in batches)
    assert {s for b in batches for s in b} == set(range(64))


def test_left_overs_wait_for_the_next_pool():
    """Rounding up in every pool would make many more batches than there are samples for."""
    sides = [4 + s % 40 for s in range(64 * 40)]
    assert len(list(GroupedBatches(images(sides), 16, seed=0))) == 160


def test_fewer_samples_than_a_batch_are_one():
    (batch,) = GroupedBatches(texts([3, 1, 2]), 16, seed=0)
    assert sorted(batch) == [0, 1, 2]
