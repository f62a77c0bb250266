"""Retraining a pruned model on what its dense teacher says of unlabelled data: ReSt, adapters of low rank, or whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from pyprune.capture.collect import frozen
from pyprune.capture.outputs import run
from pyprune.core.anatomy import Anatomy
from pyprune.core.batches import Batch, Samples
from pyprune.core.errors import InputError
from pyprune.core.layers import is_linear
from pyprune.recovery.answers import ANSWER, agreement, answer_loss, with_answers
from pyprune.recovery.distillation import distillation_loss, features_loss, last_states
from pyprune.recovery.output_heads import output_heads
from pyprune.recovery.rest import MASKS_ALONE, Effort, break_point, effort
from pyprune.recovery.training import Rates, Schedule, Trained, train
from pyprune.recovery.unit_masks import unit_masks

Method = Literal["rest", "full", "lora"]
Targets = Literal["hard", "soft"]
# What is held out to see whether masks alone suffice: a tenth of the samples between these, of few samples half.
_HELD_OUT = (16, 512)


@dataclass(frozen=True)
class Retraining:
    """Settings of `pyprune.retrain`.

    - `method`: what is trained. `rest`: masks of all units, the output heads and the last `layers`; `lora`: adapters of
      rank `rank` on all linear layers of the blocks; `full`: all weights.
    - `targets`: the dense model's distributions (hidden states where it has no logits), `soft`, or its answers alone,
      `hard`, as ReSt is published.
    - `features`: weight of the distance between the hidden states behind the last layers, added to the loss.
    - `share` of the samples, `layers`: of `rest`; None leaves them to its schedule, by `break_point`. That is the size
      above which masks and heads suffice; None: it is searched, as the smallest size whose answers agree with the dense
      model's on held-out samples to `tolerance` after these alone are trained.
    - `epochs` over that share; `batch_size`; learning rates of masks and of all else. With `schedule="linear"` they
      warm up for a tenth of the steps and decay to 0; `constant` is as ReSt is published.
    """

    method: Method = "rest"
    targets: Targets = "soft"
    features: float = 0.0
    share: float | None = None
    layers: int | None = None
    break_point: float | None = None
    tolerance: float = 0.98
    rank: int = 8
    epochs: float = 1.0
    batch_size: int = 16
    learning_rate: float = 5e-5
    mask_learning_rate: float = 1e-3
    schedule: Schedule = "linear"

    def __post_init__(self) -> None:
        for name, known in (("method", Method), ("targets", Targets), ("schedule", Schedule)):
            if getattr(self, name) not in get_args(known):
                raise InputError(f"{name}={getattr(self, name)!r}: choose one of {', '.join(get_args(known))}")
        positive = ("epochs", "batch_size", "learning_rate", "mask_learning_rate", "rank")
        for name in positive:
            if not getattr(self, name) > 0:
                raise InputError(f"{name}={getattr(self, name)} must be positive")
        for name in ("share", "break_point", "tolerance"):
            if getattr(self, name) is not None and not 0 < getattr(self, name) <= 1:
                raise InputError(f"{name}={getattr(self, name)} must be in (0, 1]")
        if self.features < 0 or (self.layers or 0) < 0:
            raise InputError(f"features={self.features}, layers={self.layers}: must not be negative")
        if self.method != "rest" and (self.layers, self.break_point) != (None, None):
            raise InputError(f"method={self.method!r} has no schedule: leave out layers and break_point")


@dataclass(frozen=True)
class Retrained:
    """What was done: the `share` of the samples in so many optimiser `steps`, with the last `layers` trained.

    `loss` is the mean of the last tenth of the steps; `break_point` and the held-out `agreement` are None where they
    were not asked for; `stopped` says why training ended early, empty if it did not.
    """

    steps: int
    loss: float
    share: float
    layers: int
    break_point: float | None = None
    agreement: float | None = None
    stopped: str = ""


# A model pruned to a share of its prunable parameters.
PrunedTo = Callable[[float], nn.Module]


def retrain(
    student: nn.Module,
    teacher: nn.Module,
    anatomy_of: Callable[[nn.Module], Anatomy],
    samples: Samples,
    settings: Retraining,
    pruned_to: PrunedTo,
    seed: int = 0,
    folder: Path | None = None,
    quiet: bool = True,
) -> Retrained:
    """Train the pruned `student` in place.

    `pruned_to` makes the models of other sizes among which the break-point is searched.
    InputError for settings that do not fit the model or the data.
    """
    samples = _shuffled(samples, seed)
    common = {"seed": seed, "quiet": quiet}
    if settings.method != "rest":
        share = settings.share or 1.0
        part = _Data(samples, teacher, settings.targets).share(share)
        done = _train(student, teacher, anatomy_of, part, settings, None, folder, **common)
        return Retrained(done.steps, done.loss, share, len(anatomy_of(student).layers), stopped=done.stopped)
    return _Rest(student, teacher, anatomy_of, samples, settings, pruned_to, seed, folder, quiet).run()


class _Data:
    """Samples to train on. The dense model answers as many as are asked for, each once."""

    def __init__(self, samples: Samples, teacher: nn.Module, targets: Targets) -> None:
        self.samples, self.teacher, self.targets = samples, teacher, targets
        self._answered: list[dict[str, torch.Tensor]] = []
        self._pad = samples.pad

    def share(self, share: float) -> Samples:
        """The first of them, one at least."""
        count = max(1, round(share * len(self.samples)))
        if self.targets == "soft":
            return self.samples.first(count)
        if count > len(self._answered):
            more = with_answers(self.teacher, _part(self.samples, range(len(self._answered), count)))
            self._answered += more.inputs
            self._pad = more.pad
        return replace(self.samples, inputs=self._answered[:count], labels=None, pad=self._pad)


@dataclass
class _Rest:
    """One run of ReSt."""

    student: nn.Module
    teacher: nn.Module
    anatomy_of: Callable[[nn.Module], Anatomy]
    samples: Samples
    settings: Retraining
    pruned_to: PrunedTo
    seed: int
    folder: Path | None
    quiet: bool

    def __post_init__(self) -> None:
        self.data = _Data(self.samples, self.teacher, self.settings.targets)

    def run(self) -> Retrained:
        own, total = self.settings, len(self.anatomy_of(self.student).layers)
        if own.layers is not None and own.layers > total:
            raise InputError(f"layers={own.layers}: the model has {total}")
        if own.share is not None and own.layers is not None:
            return self._done(self._train(self.student, Effort(own.share, own.layers), "layers"), None)
        if own.break_point is not None:
            wanted = effort(self._keep(), own.break_point, total)
            return self._done(self._train(self.student, wanted, "layers"), None)
        return self._searched(total)

    def _searched(self, total: int) -> Retrained:
        """Masks first; where they do not suffice, as much more as the break-point asks for."""
        count = min(max(len(self.samples) // 10, _HELD_OUT[0]), _HELD_OUT[1], len(self.samples) // 2)
        if not count:
            raise InputError("1 sample: none to hold out; give more, or share and layers")
        first = len(self.samples) - count
        held = with_answers(self.teacher, _part(self.samples, range(first, len(self.samples))))
        self.data = _Data(_part(self.samples, range(first)), self.teacher, self.settings.targets)
        done = self._train(self.student, MASKS_ALONE, "masks")
        found = agreement(self.student, held)
        if found >= self.settings.tolerance or done[0].stopped:
            return self._done(done, None, found)

        def suffices(size: float) -> bool:
            other = self.teacher if size == 1 else self.pruned_to(size)
            if size < 1:
                self._train(other, MASKS_ALONE, None)
            return agreement(other, held) >= self.settings.tolerance

        found_at = break_point(suffices, self._keep())
        done = self._train(self.student, effort(self._keep(), found_at, total), "layers")
        return self._done(done, found_at, agreement(self.student, held))

    def _train(self, model: nn.Module, wanted: Effort, name: str | None) -> tuple[Trained, Effort]:
        own = self.settings
        wanted = Effort(
            wanted.share if own.share is None else own.share, wanted.layers if own.layers is None else own.layers
        )
        folder = None if self.folder is None or name is None else self.folder / name
        arguments = (model, self.teacher, self.anatomy_of, self.data.share(wanted.share), own, wanted.layers, folder)
        return _train(*arguments, seed=self.seed, quiet=self.quiet), wanted

    def _keep(self) -> float:
        """The share of prunable parameters that the student has."""
        return self.anatomy_of(self.student).params() / self.anatomy_of(self.teacher).params()

    def _done(self, done: tuple[Trained, Effort], found_at: float | None, agreed: float | None = None) -> Retrained:
        (trained, wanted) = done
        return Retrained(trained.steps, trained.loss, *wanted, found_at, agreed, trained.stopped)


def _train(
    student: nn.Module,
    teacher: nn.Module,
    anatomy_of: Callable[[nn.Module], Anatomy],
    samples: Samples,
    settings: Retraining,
    layers: int | None,
    folder: Path | None,
    **common: Any,
) -> Trained:
    """One run of the loop over all of `samples`."""
    anatomy = anatomy_of(student)
    common |= {"epochs": settings.epochs, "batch_size": settings.batch_size, "schedule": settings.schedule}
    common |= {"folder": folder}
    with ExitStack() as stack:
        loss = stack.enter_context(_loss(student, teacher, anatomy, anatomy_of(teacher), settings))
        if settings.method == "rest":
            heads = output_heads(student, anatomy, _questions(samples.first(1)).collate([0]))
            trained = [p for path in anatomy.layers[len(anatomy.layers) - (layers or 0) :] for p in _own(student, path)]
            masks = stack.enter_context(unit_masks(student, anatomy))
            rest = list({id(p): p for p in (*heads, *trained)}.values())
            rates = Rates([(masks, settings.mask_learning_rate), (rest, settings.learning_rate)])
            return train(student, samples, loss, rates, clip=0.25, **common)
        if settings.method == "lora":
            parameters = stack.enter_context(_adapters(student, anatomy, settings.rank, common["seed"]))
        else:
            parameters = list(student.parameters())
        rates = Rates([(parameters, settings.learning_rate)])
        return train(student, samples, loss, rates, clip=1.0, **common)


@contextmanager
def _loss(
    student: nn.Module, teacher: nn.Module, anatomy: Anatomy, dense: Anatomy, settings: Retraining
) -> Iterator[Callable[[nn.Module, Batch], torch.Tensor]]:
    """The loss of a batch whose inputs hold answers, if they are what is trained on."""
    with ExitStack() as stack:
        stack.enter_context(frozen(teacher))
        if settings.features:
            own = stack.enter_context(last_states(student, anatomy.layers[-1]))
            wanted = stack.enter_context(last_states(teacher, dense.layers[-1]))

        def loss(model: nn.Module, batch: Batch) -> torch.Tensor:
            answer = batch.inputs.pop(ANSWER, None)
            outputs = run(model, batch.inputs)
            expected = None
            if answer is None or settings.features:
                with torch.no_grad():
                    expected = run(teacher, batch.inputs)
            if answer is None:
                value = distillation_loss(outputs, expected, batch)
            else:
                value = answer_loss(outputs, batch, answer)
            if settings.features:
                if own[0].shape != wanted[0].shape:
                    raise InputError(f"features={settings.features}: the model has lost hidden width, so leave it at 0")
                value = value + settings.features * features_loss(batch.real(own[0]), batch.real(wanted[0]))
            return value

        yield loss


@contextmanager
def _adapters(student: nn.Module, anatomy: Anatomy, rank: int, seed: int) -> Iterator[list[nn.Parameter]]:
    """Adapters of low rank on the linear layers inside `anatomy.layers`, merged into their weights at the end."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.tuners_utils import BaseTunerLayer
    except ImportError:
        raise InputError('method="lora" needs the package peft: install it') from None
    names = [
        f"{path}.{name}"
        for path in anatomy.layers
        for name, module in student.get_submodule(path).named_modules()
        if is_linear(module) and module.weight.numel()
    ]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names), student)
    try:
        yield [p for name, p in student.named_parameters() if "lora_" in name]
    finally:
        for name, module in list(student.named_modules()):
            if isinstance(module, BaseTunerLayer):
                module.merge()
                parent, _, own = name.rpartition(".")
                setattr(student.get_submodule(parent), own, module.get_base_layer())


def _own(model: nn.Module, path: str) -> list[nn.Parameter]:
    return list(model.get_submodule(path).parameters())


def _questions(samples: Samples) -> Samples:
    """`samples` without answers."""
    rows = [{name: value for name, value in row.items() if name != ANSWER} for row in samples.inputs]
    return replace(samples, inputs=rows)


def _part(samples: Samples, index: Sequence[int]) -> Samples:
    return replace(samples, inputs=[samples.inputs[s] for s in index], labels=None)


def _shuffled(samples: Samples, seed: int) -> Samples:
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed)).tolist()
    return _part(samples, order)
