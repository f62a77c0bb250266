"""Operators with hand-written kernels: `pyprune::<op>` in PyTorch's dispatcher, one file per op, one dispatcher below.

Every op works everywhere: it has a torch reference, a fake, and candidates in C++, Triton or CUDA that are used where
they are built and support the call. `table()` says what can run here; `backend("triton")` or `PYPRUNE_BACKEND` chooses.
"""

from pyprune.ops._dispatch import BACKENDS, OPS, Candidate, Op, Row, backend, check_choice, table
from pyprune.ops.act_bwd_maskgrad import act_bwd_maskgrad
from pyprune.ops.act_fwd_stats import act_fwd_stats
from pyprune.ops.channel_stats import channel_stats
from pyprune.ops.fisher_update_ import fisher_update_
from pyprune.ops.gather_compact import gather_compact
from pyprune.ops.gemm_dact_maskgrad import gemm_dact_maskgrad
from pyprune.ops.gram_probe_grad import gram_probe_grad
from pyprune.ops.hadamard_gram import hadamard_gram
from pyprune.ops.knapsack import knapsack, quantise_costs
from pyprune.ops.latency_envelope import latency_envelope
from pyprune.ops.linear_cross_entropy import linear_cross_entropy
from pyprune.ops.prod_reduce import prod_reduce
from pyprune.ops.rearrange import rearrange
from pyprune.ops.wgrad_group_scores import wgrad_group_scores

__all__ = [
    "BACKENDS",
    "OPS",
    "Candidate",
    "Op",
    "Row",
    "act_bwd_maskgrad",
    "act_fwd_stats",
    "backend",
    "channel_stats",
    "check_choice",
    "fisher_update_",
    "gather_compact",
    "gemm_dact_maskgrad",
    "gram_probe_grad",
    "hadamard_gram",
    "knapsack",
    "latency_envelope",
    "linear_cross_entropy",
    "prod_reduce",
    "quantise_costs",
    "rearrange",
    "table",
    "wgrad_group_scores",
]
