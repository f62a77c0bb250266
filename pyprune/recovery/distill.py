"""Retraining without labels: the pruned student learns to put out what its dense teacher does (Hinton et al. 2015).

Runs on transformers' `Trainer`, so schedules, mixed precision and multi-GPU are its own.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from pyprune.capture.outputs import embedding_of, logits_of, run, states_of
from pyprune.core.batches import Batch, Samples, batching
from pyprune.core.errors import InputError

# Softens both distributions, so that the teacher's ranking of unlikely classes is learned too.
_TEMPERATURE = 2.0


@dataclass(frozen=True)
class Distillation:
    """What `distill` did: optimiser `steps` and the mean training loss of the last tenth of them."""

    steps: int
    loss: float


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
    s, t = batch.real(s.float()), batch.real(t.float())
    return apart + F.mse_loss(s, t) / t.var()


def _divergence(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    s, t = (x.float().div(_TEMPERATURE).log_softmax(-1) for x in (student, teacher))
    return F.kl_div(s, t, log_target=True, reduction="batchmean") * _TEMPERATURE**2


def distill(
    student: nn.Module,
    teacher: nn.Module,
    samples: Samples,
    epochs: float = 1.0,
    learning_rate: float = 5e-5,
    batch_size: int = 32,
    seed: int = 0,
    quiet: bool = True,
) -> Distillation:
    """Train all weights of `student` in place on unlabelled `samples`; AdamW with linear decay and a tenth of warm-up.

    Raises InputError for settings that are not positive.
    """
    if not (epochs > 0 and learning_rate > 0 and batch_size > 0):
        raise InputError(f"epochs={epochs}, learning_rate={learning_rate} and batch_size={batch_size} must be positive")
    from transformers import PrinterCallback, Trainer, TrainingArguments

    class _Distiller(Trainer):
        def compute_loss(self, model: nn.Module, inputs: dict[str, torch.Tensor], *args: Any, **kwargs: Any) -> Any:
            lengths = inputs.pop("lengths")
            batch = Batch(inputs, torch.arange(len(lengths)), lengths)
            batch = batch.on(teacher)
            with torch.no_grad():
                expected = run(teacher, batch.inputs)
            return distillation_loss(run(model, batch.inputs), expected, batch)

    def collate(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        mixed = Samples(rows, None, samples.pad, tokens=samples.tokens)
        batch = mixed.collate(mixed.lengths.argsort(descending=True, stable=True).tolist(), pad)
        return {**batch.inputs, "lengths": batch.lengths}

    pad = batching(student)["pad"]
    teacher.eval()
    on_cpu = next(student.parameters()).device.type == "cpu"
    trainable = [(p, p.requires_grad) for p in student.parameters()]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=epochs,
            learning_rate=learning_rate,
            per_device_train_batch_size=batch_size,
            warmup_steps=0.1,
            lr_scheduler_type="linear",
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            remove_unused_columns=False,
            use_cpu=on_cpu,
            seed=seed,
            disable_tqdm=quiet,
        )
        student.requires_grad_(True)
        trainer = _Distiller(model=student, args=arguments, train_dataset=samples.inputs, data_collator=collate)
        if quiet:
            trainer.remove_callback(PrinterCallback)
        trainer.train()
    for parameter, required in trainable:
        parameter.requires_grad_(required)
    student.eval()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    tail = losses[-max(1, len(losses) // 10) :]
    return Distillation(trainer.state.global_step, sum(tail) / len(tail))
