"""First- and second-order Taylor scores (Molchanov et al. 2019; LLM-Pruner: Ma, Fang and Wang, NeurIPS 2023).

- `taylor`: |sum over samples of the mask gradient|, LLM-Pruner's `vectorize`: the loss that removing the unit costs to
  first order, since the mask's gradient is the sum of w g over any one of the unit's matrices.
- `taylor_abs`, `taylor_sq`, `taylor_mix`: sums over all single weights that go with the unit of |w g|, w^2 g^2 and
  |w g - w^2 g^2 / 2|, with g^2 summed over samples: `param_first`, `param_second` and `param_mix`.

The released code leaves out the query, key and value projections in the last three by a mistake in a comparison; here
all weights of the unit count.
"""

from __future__ import annotations

import torch

from pyprune.importance.registry import Evidence, criterion


@criterion("taylor", needs="gradients")
def taylor(evidence: Evidence) -> dict[str, torch.Tensor]:
    return {name: g.double().sum(0).abs() for name, g in evidence.given().gradients.items()}


def _weights(evidence: Evidence) -> dict[str, torch.Tensor]:
    return {name: values.clone() for name, values in evidence.given().weights.items()}


for _mode in ("abs", "sq", "mix"):
    criterion(f"taylor_{_mode}", needs="weights", mode=_mode)(_weights)
