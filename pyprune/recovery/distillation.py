"""How far a student's outputs are from its dense teacher's (Hinton et al. 2015): what it trains on without labels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from pyprune.capture.outputs import embedding_of, logits_of, states_of
from pyprune.core.batches import Batch
from pyprune.core.errors import InputError

# Softens both distributions, so that the teacher's ranking of unlikely classes is learned too.
_TEMPERATURE = 2.0


def distillation_loss(student: Any, teacher: Any, batch: Batch) -> torch.Tensor:
    """How far the student's outputs are from the teacher's, a scalar.

    Logits: KL(teacher || student) at temperature 2, times 4, mean over real tokens or samples. Hidden states: squared
    error relative to the teacher's variance, mean over real tokens, plus one minus the cosine of the embeddings.
    """
    if hasattr(teacher, "start_logits"):
        pairs = [(student.start_logits, teacher.start_logits), (student.end_logits, teacher.end_logits)]
        return sum(_divergence(s, t) for s, t in pairs) / 2
    s, t = logits_of(student), logits_of(teacher)
    if s is not None and t is not None:
        return _divergence(batch.real(s), batch.real(t)) if t.dim() == 3 else _divergence(s, t)
    e, f = embedding_of(student, batch), embedding_of(teacher, batch)
    if e is None or f is None:
        raise InputError(f"a {type(teacher).__name__} holds neither logits nor hidden states to train on")
    apart = (1 - (e * f).sum(1)).mean()
    s, t = states_of(student), states_of(teacher)
    if s is None or t is None:
        return apart
    return apart + features_loss(batch.real(s), batch.real(t))


def features_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Mean squared error of hidden states `[N, d]` relative to the teacher's variance."""
    return F.mse_loss(student.float(), teacher.float()) / teacher.float().var()


@contextmanager
def last_states(model: nn.Module, layer: str) -> Iterator[list[torch.Tensor]]:
    """A list that holds the hidden state `[B, T, d]` behind `layer`, a path, after every forward pass of `model`."""
    found: list[torch.Tensor] = []

    def remember(_: nn.Module, args: Any, output: Any) -> None:
        found[:] = [output if isinstance(output, torch.Tensor) else output[0]]

    handle = model.get_submodule(layer).register_forward_hook(remember)
    try:
        yield found
    finally:
        handle.remove()


def _divergence(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    s, t = (x.float().div(_TEMPERATURE).log_softmax(-1) for x in (student, teacher))
    return F.kl_div(s, t, log_target=True, reduction="batchmean") * _TEMPERATURE**2
