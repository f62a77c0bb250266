"""How closely a pruned model follows its dense teacher on held-out data, without labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from pyprune.capture.collect import frozen
from pyprune.capture.outputs import embedding_of, logits_of, run
from pyprune.core.batches import Batch, Samples, batching


@dataclass(frozen=True)
class Fidelity:
    """Means over the held-out samples, by name: what is compared depends on what the model puts out.

    - hidden states: `cosine` between dense and pruned embeddings (`capture.outputs`), and `neighbour`, the share of
      samples whose nearest neighbour (by cosine, itself excluded) is the same for both models;
    - logits: `kl`, the divergence KL(dense || pruned) in nats a prediction, and `top1`, the share of equal top
      predictions.
    """

    values: dict[str, float]

    def __str__(self) -> str:
        return "  ".join(f"{name} {value:.4f}" for name, value in self.values.items())


@torch.no_grad()
def fidelity(dense: nn.Module, pruned: nn.Module, samples: Samples) -> Fidelity:
    """Compare two models on `samples`, each batch through both; no values for outputs that hold none of these."""
    divergence = agree = 0.0
    count = 0
    embeddings: list[list[torch.Tensor]] = []
    with frozen(dense), frozen(pruned):
        for batch in samples.batches(**batching(dense)):
            moved = batch.on(dense)
            outputs = [run(model, moved.inputs) for model in (dense, pruned)]
            teacher, student = (_logits(output, moved) for output in outputs)
            if teacher is None or student is None:
                found = [embedding_of(output, moved) for output in outputs]
                embeddings.append([e.cpu() for e in found if e is not None])
                continue
            before, after = teacher.log_softmax(-1), student.log_softmax(-1)
            divergence += float(F.kl_div(after, before, log_target=True, reduction="sum"))
            agree += float((teacher.argmax(-1) == student.argmax(-1)).sum())
            count += teacher.shape[0]
    if not embeddings:
        return Fidelity({"kl": divergence / count, "top1": agree / count})
    if not embeddings[0]:
        return Fidelity({})
    a, b = (torch.cat(table) for table in zip(*embeddings, strict=True))
    nearest = [(t @ t.T).fill_diagonal_(-torch.inf).argmax(1) for t in (a, b)]
    same = float((nearest[0] == nearest[1]).float().mean())
    return Fidelity({"cosine": float((a * b).sum(1).mean()), "neighbour": same})


def _logits(outputs: Any, batch: Batch) -> torch.Tensor | None:
    """`[N, C]` fp32 logits: one row a sample, or a row a real token."""
    if hasattr(outputs, "start_logits"):
        return torch.cat([outputs.start_logits, outputs.end_logits]).float()
    logits = logits_of(outputs)
    return logits if logits is None else (logits if logits.dim() == 2 else batch.real(logits)).float()
