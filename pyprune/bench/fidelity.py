"""How closely a pruned model follows its dense teacher on held-out data, without labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from pyprune.capture.collect import frozen
from pyprune.capture.cotangent import pooled_embedding
from pyprune.core.batches import Batch, Samples, batching


@dataclass(frozen=True)
class Fidelity:
    """Means over the held-out samples, by name: what is compared depends on what the model puts out.

    - hidden states: `cosine` between dense and pruned pooled sentence embeddings, and `neighbour`, the share of samples
      whose nearest neighbour (by cosine, itself excluded) is the same for both models;
    - logits: `kl`, the divergence KL(dense || pruned) in nats a prediction, and `top1`, the share of equal top
      predictions.
    """

    values: dict[str, float]

    def __str__(self) -> str:
        return "  ".join(f"{name} {value:.4f}" for name, value in self.values.items())


@torch.no_grad()
def fidelity(dense: nn.Module, pruned: nn.Module, samples: Samples) -> Fidelity:
    """Compare two models on `samples`, each batch through both."""
    device = next(dense.parameters()).device
    batches = [batch.to(device) for batch in samples.batches(**batching(dense))]
    with frozen(dense), frozen(pruned):
        if dense.base_model is dense:
            return Fidelity(_embeddings(dense, pruned, batches, len(samples)))
        return Fidelity(_predictions(dense, pruned, batches))


def _embeddings(dense: nn.Module, pruned: nn.Module, batches: list[Batch], count: int) -> dict[str, float]:
    tables = []
    for model in (dense, pruned):
        rows = [
            (batch.index, pooled_embedding(model(**batch.inputs).last_hidden_state, batch).cpu()) for batch in batches
        ]
        table = torch.zeros(count, rows[0][1].shape[1])
        for index, embedding in rows:
            table[index] = embedding
        tables.append(table)
    a, b = tables
    nearest = [(t @ t.T).fill_diagonal_(-torch.inf).argmax(1) for t in tables]
    return {"cosine": float((a * b).sum(1).mean()), "neighbour": float((nearest[0] == nearest[1]).float().mean())}


def _predictions(dense: nn.Module, pruned: nn.Module, batches: list[Batch]) -> dict[str, float]:
    divergence = agree = 0.0
    count = 0
    for batch in batches:
        teacher, student = (_logits(model(**batch.inputs), batch) for model in (dense, pruned))
        divergence += float(
            F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), log_target=True, reduction="sum")
        )
        agree += float((teacher.argmax(-1) == student.argmax(-1)).sum())
        count += teacher.shape[0]
    return {"kl": divergence / count, "top1": agree / count}


def _logits(outputs: Any, batch: Batch) -> torch.Tensor:
    """`[N, C]` fp32 logits: one row a sample, or a row a real token."""
    if hasattr(outputs, "start_logits"):
        return torch.cat([outputs.start_logits, outputs.end_logits]).float()
    logits = outputs.logits.float()
    return logits if logits.dim() == 2 else logits[batch.token_mask.to(logits.device)]
