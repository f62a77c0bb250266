"""rearrange against the published loop, O(samples * n) a step, where that takes less than a minute."""

from collections.abc import Iterator

import torch

from pyprune.bench.ops import Case
from pyprune.ops.rearrange import reference

# (samples, units, kept, whether the published loop is timed too)
SHAPES = ((64, 1536, 768, True), (64, 3072, 1536, True), (2048, 3072, 1536, False))


def cases(device: str, tiny: bool) -> Iterator[Case]:
    for samples, units, keep, slow in ((8, 40, 20, True),) if tiny else SHAPES:

        def arguments(samples=samples, units=units, keep=keep):
            return torch.randn(samples, units, generator=torch.Generator().manual_seed(0)).to(device), keep

        peers = {"published": reference} if slow else {}
        yield Case(f"{samples}x{units} keep={keep}", "fp32", arguments, peers)
