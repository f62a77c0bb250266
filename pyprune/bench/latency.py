"""Dense and pruned forward passes timed side by side."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from pyprune.bench.timing import interleave
from pyprune.calibration import most_tokens
from pyprune.capture.collect import frozen
from pyprune.core.batches import Samples

# Batch and length of the standard cases: one short query, and a full throughput batch.
CASES = ((1, 128), (32, 128))
# Of images and the like, whose size the data gives.
OTHER_BATCHES = (1, 16)


@dataclass(frozen=True)
class Latency:
    """Medians of one forward pass, measured in turns in one run; `ratio` > 1 means that the pruned model is faster."""

    batch: int
    length: int
    dense_ms: float
    pruned_ms: float

    @property
    def ratio(self) -> float:
        return self.dense_ms / self.pruned_ms


@torch.no_grad()
def latency(
    dense: nn.Module,
    pruned: nn.Module,
    batch: int,
    length: int = 128,
    repeats: int | None = None,
    seed: int = 0,
    samples: Samples | None = None,
) -> Latency:
    """Time both models on random ids `[batch, length]` without padding, or on the first of `samples` so many times.

    They run in turns, `repeats` each.
    """
    device = next(dense.parameters()).device
    if samples is None:
        length = min(length, most_tokens(dense, None))
        generator = torch.Generator().manual_seed(seed)
        tokens = min(dense.config.vocab_size, pruned.config.vocab_size)
        ids = torch.randint(min(5, tokens - 1), tokens, (batch, length), generator=generator).to(device)
        inputs = {"input_ids": ids}
    else:
        length = int(samples.lengths[0])
        inputs = samples.collate([0] * batch).on(dense).inputs
    repeats = repeats or (40 if batch * length <= 512 else 9)
    with frozen(dense), frozen(pruned):
        timings = interleave(
            {"dense": lambda: dense(**inputs), "pruned": lambda: pruned(**inputs)},
            repeats=repeats,
            warmup=2,
            device=device,
        )
    return Latency(batch, length, timings["dense"].median * 1e3, timings["pruned"].median * 1e3)
