"""Usage: how often the calibration data has each token. The one score of the vocabulary, whatever the criterion."""

from __future__ import annotations

import torch

from pyprune.core.batches import Samples


def token_usage(samples: Samples, size: int) -> torch.Tensor:
    """`[size]` float64: how often each of `size` tokens is in the samples' input ids."""
    return torch.bincount(torch.cat([row["input_ids"] for row in samples.inputs]), minlength=size).double()
