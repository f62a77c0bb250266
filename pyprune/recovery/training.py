"""The training loop of every way to retrain: transformers' `Trainer`, so mixed precision and multi-GPU are its own.

A run with a folder goes on from its last checkpoint; one whose loss is no longer finite stops at its last good state.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.data import DataLoader

from pyprune.core.batches import Batch, Samples, batching
from pyprune.core.errors import InputError
from pyprune.core.storage import read_json, write_json
from pyprune.recovery.grouped_batches import GroupedBatches

# Checkpoints and good states of a run.
_KEPT = 10
_DONE = "trained.json"

Loss = Callable[[nn.Module, Batch], torch.Tensor]
Schedule = Literal["linear", "constant"]


@dataclass(frozen=True)
class Trained:
    """What a run did: optimiser `steps`, the mean training `loss` of the last tenth of them, why it `stopped` early."""

    steps: int
    loss: float
    stopped: str = ""


@dataclass(frozen=True)
class Rates:
    """Parameters that are trained, with the learning rate of each group."""

    groups: Sequence[tuple[Sequence[nn.Parameter], float]]

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [p for group, _ in self.groups for p in group]

    def optimizer(self) -> torch.optim.Optimizer:
        """AdamW without weight decay."""
        groups = [{"params": list(group), "lr": rate} for group, rate in self.groups if group]
        return torch.optim.AdamW(groups, weight_decay=0.0)


class _Diverged(Exception):
    """The loss of a step is not finite."""


def train(
    model: nn.Module,
    samples: Samples,
    loss: Loss,
    rates: Rates,
    *,
    epochs: float = 1.0,
    batch_size: int = 16,
    schedule: Schedule = "linear",
    clip: float = 1.0,
    seed: int = 0,
    folder: Path | None = None,
    quiet: bool = True,
) -> Trained:
    """Minimise `loss(model, batch)` over `samples` in place; nothing but the parameters of `rates` changes.

    `schedule="linear"` warms up for a tenth of the steps and decays to 0. `clip` is the largest norm of the gradient.
    With a `folder` its checkpoints are written there ten times a run, and it goes on from the last one it finds.
    InputError for a loss that is not finite in the first step.
    """
    from transformers import PrinterCallback, Trainer, TrainingArguments, logging

    guard = _Guard(rates.parameters)

    class _Trainer(Trainer):
        def get_train_dataloader(self) -> DataLoader:
            batches = GroupedBatches(samples, batch_size, seed)
            return self.accelerator.prepare(DataLoader(samples.inputs, batch_sampler=batches, collate_fn=collate))

        def compute_loss(self, model: nn.Module, inputs: dict[str, torch.Tensor], *args: Any, **kwargs: Any) -> Any:
            lengths = inputs.pop("lengths")
            value = loss(model, Batch(inputs, torch.arange(len(lengths)), lengths).on(model))
            guard.see(value.detach(), self.state.global_step, self.state.max_steps)
            return value

    def collate(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        mixed = Samples(rows, None, samples.pad, tokens=samples.tokens)
        batch = mixed.collate(mixed.lengths.argsort(descending=True, stable=True).tolist(), pad)
        return {**batch.inputs, "lengths": batch.lengths}

    pad = batching(model)["pad"]
    steps = max(1, round(epochs * len(samples) / batch_size))
    with ExitStack() as stack:
        run = Path(stack.enter_context(tempfile.TemporaryDirectory())) if folder is None else folder
        if quiet and logging.is_progress_bar_enabled():
            logging.disable_progress_bar()
            stack.callback(logging.enable_progress_bar)
        stack.enter_context(trainable(model, rates.parameters))
        stack.callback(model.eval)
        arguments = TrainingArguments(
            output_dir=str(run),
            max_steps=steps,
            per_device_train_batch_size=batch_size,
            warmup_steps=0.1 if schedule == "linear" else 0,
            lr_scheduler_type=schedule,
            max_grad_norm=clip,
            logging_strategy="no",
            save_strategy="no" if folder is None else "steps",
            save_steps=max(1, steps // _KEPT),
            save_total_limit=1,
            report_to=[],
            remove_unused_columns=False,
            use_cpu=next(model.parameters()).device.type == "cpu",
            seed=seed,
            disable_tqdm=quiet,
        )
        trainer = _Trainer(
            model=model,
            args=arguments,
            train_dataset=samples.inputs,
            data_collator=collate,
            optimizers=(rates.optimizer(), None),
        )
        trainer.remove_callback(PrinterCallback)
        stopped = ""
        try:
            trainer.train(resume_from_checkpoint=_last_checkpoint(run))
            if (run / _DONE).exists():
                return Trained(**read_json(run / _DONE))
        except _Diverged as error:
            stopped = str(error)
        if not stopped and not guard.finite():
            stopped = "the weights are not finite after the last step"
        if stopped:
            kept = guard.restore()
            if kept is None:
                raise InputError(f"retraining: {stopped}, the first one: a lower learning rate may help")
            stopped += f"; the state of step {kept} was kept"
        tail = guard.losses[-max(1, steps // 10) :]
        done = Trained(trainer.state.global_step, fmean(tail), stopped)
        if folder is not None and not stopped:
            write_json(run / _DONE, asdict(done))
    return done


class _Guard:
    """Watches the loss, and holds a copy of the trained parameters that is known to be good."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters = parameters
        self.losses: list[float] = []
        self.good: tuple[int, list[torch.Tensor]] | None = None

    def see(self, loss: torch.Tensor, step: int, steps: int) -> None:
        """Raise `_Diverged` for a loss that is not finite."""
        value = float(loss)  # the only time that a step waits for the device
        if not math.isfinite(value):
            raise _Diverged(f"the loss of step {step + 1} is {value}")
        self.losses.append(value)
        # What gave a finite loss is good, before the step that follows it.
        if self.good is None or step >= self.good[0] + max(1, steps // _KEPT):
            self.good = step, [p.detach().clone() for p in self.parameters]

    def finite(self) -> bool:
        return all(bool(torch.isfinite(p).all()) for p in self.parameters)

    def restore(self) -> int | None:
        """Put the good state back; the number of steps that made it, None if there is none but the start."""
        if self.good is None:
            return None
        with torch.no_grad():
            for parameter, kept in zip(self.parameters, self.good[1], strict=True):
                parameter.copy_(kept)
        return self.good[0]


@contextmanager
def trainable(model: nn.Module, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Only `parameters` of `model` have gradients while the block lasts."""
    before = [(p, p.requires_grad) for p in model.parameters()]
    try:
        model.requires_grad_(False)
        for parameter in parameters:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)
            parameter.grad = None


def _last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint of a run in `folder` that is whole, None where there is none."""
    whole = (path.parent for path in folder.glob("checkpoint-*/trainer_state.json"))  # what is written last
    return max(map(str, whole), key=lambda path: int(path.rpartition("-")[2]), default=None)
