"""First- and second-order Taylor scores (Molchanov et al. 2019; LLM-Pruner: Ma, Fang and Wang, NeurIPS 2023).

- `taylor`: |sum over samples of the mask gradient|, the loss that removing the unit costs to first order. It is the
  absolute sum of w g over the unit's columns of the output projection; LLM-Pruner's `vectorize` takes one such sum a
  channel and matrix, and adds up their absolute values.
- `taylor_abs`, `taylor_sq`, `taylor_mix`: sums over all single weights that go with the unit of |w g|, w^2 g^2 and
  |w g - w^2 g^2 / 2|, with g^2 summed over samples: `param_first`, `param_second` and `param_mix`.

The released code leaves out the query, key and value projections in the last three by a mistake in a comparison; here
all weights of the unit count.
"""

from __future__ import annotations

import torch

from pyprune.importance.registry import Evidence, criterion


@criterion("taylor", needs="gradients", first_order=True)
def taylor(evidence: Evidence) -> dict[str, torch.Tensor]:
    return {name: g.double().sum(0).abs() for name, g in evidence.given().gradients.items()}


def _weights(evidence: Evidence) -> dict[str, torch.Tensor]:
    return {name: values.clone() for name, values in evidence.given().weights.items()}


for _mode in ("abs", "sq", "mix"):
    criterion(f"taylor_{_mode}", needs="weights", mode=_mode, first_order=_mode != "sq")(_weights)
