"""Batches of retraining: random, but of samples that are alike, so that little is padded and all can be stacked."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from pyprune.core.batches import Samples

# Samples are sorted by length among so many batches' worth of them at a time.
_POOL = 32


class GroupedBatches(Sampler[list[int]]):
    """Numbers of samples, `batch_size` in every batch (all samples, where there are fewer).

    An epoch is a random permutation. Of each pool of it, samples of equal shapes, text aside, are sorted by length and
    cut into batches. What is left over of a shape goes into the next pool; at the end of the epoch its batch is filled
    up with samples of the same shape. The batches then are shuffled. Equal seeds and epochs give equal batches.
    """

    def __init__(self, samples: Samples, batch_size: int, seed: int) -> None:
        self.batch_size = min(batch_size, len(samples))
        self.drop_last = False  # asked for by accelerate
        self.seed, self.epoch = seed, 0
        self.lengths = samples.lengths.tolist()
        self.shapes = samples.rigid_shapes
        self._batches = sum(-(-count // self.batch_size) for count in Counter(self.shapes).values())

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator)
        batches: list[list[int]] = []
        left: dict[object, list[int]] = defaultdict(list)
        for pool in order.split(_POOL * self.batch_size):
            for s in pool.tolist():
                left[self.shapes[s]].append(s)
            for shape, own in left.items():
                whole = len(own) // self.batch_size * self.batch_size
                taken = sorted(own[:whole], key=self.lengths.__getitem__)
                batches += [taken[i : i + self.batch_size] for i in range(0, whole, self.batch_size)]
                left[shape] = own[whole:]
        alike: dict[object, list[int]] = defaultdict(list)
        for s in order.tolist():
            alike[self.shapes[s]].append(s)
        for shape, own in left.items():
            if own:
                filler = alike[shape] * -(-self.batch_size // len(alike[shape]))
                batches.append((own + filler)[: self.batch_size])
        yield from (batches[i] for i in torch.randperm(len(batches), generator=generator).tolist())
