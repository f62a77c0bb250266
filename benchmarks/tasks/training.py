"""The training loop of the tasks that train their dense model from scratch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from tqdm import tqdm
from transformers import get_cosine_schedule_with_warmup


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters: the rate rises to `lr` over the first `warmup` of all steps, then falls."""

    epochs: float
    batch: int
    lr: float
    weight_decay: float
    warmup: float


def optimise(
    model: nn.Module, loss: Callable[[torch.Tensor], torch.Tensor], lengths: torch.Tensor, recipe: Recipe, seed: int
) -> None:
    """AdamW on `loss(index)` of shuffled batches.

    `lengths` `[S]` are the samples' tokens: those of a batch are of like length.

    Equal seeds give equal weights on one machine with one number of threads. ValueError when the loss is not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # dropout
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98), fused=True)
    steps = max(1, int(recipe.epochs * len(lengths) / recipe.batch))
    schedule = get_cosine_schedule_with_warmup(optimizer, int(recipe.warmup * steps), steps)
    model.train()
    order: list[torch.Tensor] = []
    with tqdm(total=steps, desc="training", mininterval=5) as bar:
        for _ in range(steps):
            order = order or _batches(lengths, recipe.batch, generator)
            value = loss(order.pop())
            if not torch.isfinite(value):
                raise ValueError(f"the loss is {value.item()}")
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            bar.set_postfix(loss=f"{value.item():.3f}", refresh=False)
            bar.update()
    model.eval()


def _batches(lengths: torch.Tensor, size: int, generator: torch.Generator) -> list[torch.Tensor]:
    """An epoch's batches in random order: of each 32 of them, shuffled, the samples are sorted by length."""
    pools = torch.randperm(len(lengths), generator=generator).split(32 * size)
    found = [part for pool in pools for part in pool[lengths[pool].argsort(stable=True)].split(size)]
    return [found[i] for i in torch.randperm(len(found), generator=generator).tolist()]
