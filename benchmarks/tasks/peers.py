"""Another package as a recipe of the runner: torch-pruning, which cuts heads and neurons by its own criteria.

    python -m benchmarks.tasks.run --task digits --recipe torch-pruning --set importance=taylor --budget 0.5

It is called as in its own examples for transformers: output projections, embeddings and output heads are left alone
(so the hidden width stays), heads go whole, one ranking over all layers. Its ratio is searched until what is left is
just within the budget, which is counted by the anatomy of the dense model as everywhere else.
"""

from __future__ import annotations

import copy
import inspect
import signal
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

import pyprune
from benchmarks.tasks.task import DataError, Task
from pyprune.capture.outputs import logits_of, run

VERSION = "1.6.1"
# Ratios are tried in so many steps from none to all until one is within the budget, then so many between the two.
_STEPS, _HALVINGS = 16, 7
_DOES_NOT_RUN = "the pruned model does not run"
_HEADS = ("heads", "kv_groups")


class PeerFailure(RuntimeError):
    """The other package did not get a model within the budget that runs: a result, not an error of ours."""


@dataclass(frozen=True)
class Made:
    """A pruned `model`, the share `achieved` of the budget's resource, FLOPs, and its `stages` with their log.

    `scores` are those of units that `pyprune.retrain` takes; None for models that it does not know.
    """

    model: nn.Module
    achieved: float
    dense_flops: float
    flops: float
    stages: Any
    scores: Any = None


@dataclass(frozen=True)
class TorchPruning:
    """Settings of torch-pruning.

    `importance`: `magnitude`; `taylor`; `hessian`, whose `accumulate_grad` keeps the squared gradients of the last
    sample only (1.6.1); or `hessian_mean`, which is given their mean over all samples instead.
    `cotangent`: the gradients of `taylor` and `hessian` are those of the loss of the model's own `answers`, or of the
    data's `labels`. With `global_pruning` False every layer loses the same share.
    `limit` is in seconds, for one model: on some, its search for dependencies does not end.
    Raises InputError for other values, DataError when the package is missing.
    """

    importance: str = "magnitude"
    cotangent: str = "answers"
    global_pruning: bool = True
    limit: float = 120.0
    name: ClassVar[str] = "torch-pruning"

    def __post_init__(self) -> None:
        _choose("importance", self.importance, ("magnitude", "taylor", "hessian", "hessian_mean"))
        _choose("cotangent", self.cotangent, ("answers", "labels"))
        _choose("global_pruning", self.global_pruning, (True, False))
        if not isinstance(self.limit, (int, float)) or self.limit <= 0:
            raise pyprune.InputError(f"limit={self.limit!r} must be a number of seconds above 0")
        try:
            version("torch-pruning")
        except PackageNotFoundError:
            command = f"pip install --no-deps torch-pruning=={VERSION}"
            raise DataError(f"the recipe {self.name} needs the package torch-pruning: {command}") from None

    def prune(self, task: Task, dense: nn.Module, data: Any, resource: str, budget: float, seed: int) -> Made:
        """A pruned copy of `dense` that keeps at most the share `budget` of `resource`. Raises PeerFailure."""
        # Scores by magnitude and keeps everything: for the anatomy, the samples and their length.
        whole = pyprune.prune(
            dense,
            {resource: 1.0},
            data,
            recipe=pyprune.Kwon(criterion="magnitude", tuning="none"),
            length=task.length,
            tokenizer=task.tokenizer,
            samples=len(data),
            seed=seed,
            dry_run=True,
        )
        anatomy, samples, stages, length = whole.anatomy, whole.calibration, whole.stages, whole.plan.length
        stages.log.clear()  # those of the peer follow

        def share(model: nn.Module) -> float:
            return _cost(anatomy, dense, model, length)[resource] / _cost(anatomy, dense, dense, length)[resource]

        inputs = samples.first(1).collate([0]).on(dense).inputs
        with stages.stage("score"):
            scored = self._scored(dense, samples)
        with stages.stage("prune"):
            model = self._searched(anatomy, scored, inputs, share, budget)
        with _failing(_DOES_NOT_RUN), torch.no_grad():
            model(**{name: tensor.to(whole.dense.device) for name, tensor in task.example(2).items()})
        flops = [_cost(anatomy, dense, found, length)["flops"] for found in (dense, model)]
        return Made(model, share(model), *flops, stages)

    def _scored(self, dense: nn.Module, samples: Any) -> tuple[nn.Module, Any]:
        """A copy of the dense model with the gradients that the importance reads, and the importance."""
        import torch_pruning as tp

        kind = {"magnitude": "Magnitude", "taylor": "Taylor"}.get(self.importance, "Hessian")
        model, importance = copy.deepcopy(dense), getattr(tp.importance, f"Group{kind}Importance")()
        if kind == "Magnitude":
            return model, importance
        model.eval().requires_grad_(True)
        squares: dict[str, torch.Tensor] = {}
        model.zero_grad()
        for batch in samples.batches():  # of one length: no padding
            losses = self._losses(model, batch.on(model))
            if kind == "Taylor":
                (losses.sum() / len(samples)).backward()
                continue
            for loss in losses:
                model.zero_grad()
                loss.backward(retain_graph=True)
                if self.importance == "hessian":
                    importance.accumulate_grad(model)
                else:
                    own = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
                    squares = {name: squares.get(name, 0) + grad.square() for name, grad in own.items()}
        if self.importance == "hessian_mean":
            for name, parameter in model.named_parameters():
                parameter.grad = (squares[name] / len(samples)).sqrt() if name in squares else None
            importance.accumulate_grad(model)
        return model, importance

    def _losses(self, model: nn.Module, batch: Any) -> torch.Tensor:
        """`[B]`: cross-entropy of the targets, the mean over a sample's tokens."""
        logits = logits_of(run(model, batch.inputs)).float()
        targets = logits.argmax(-1)
        if self.cotangent == "labels":
            text = batch.inputs.get("decoder_input_ids", batch.inputs.get("input_ids"))
            targets = text if batch.labels is None else batch.labels
            if model.can_generate():  # a token's logits are those of the next, and of a text behind an image
                logits, targets = logits[:, -text.shape[1] : -1], targets[:, 1:]
        entropy = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="none")
        return entropy.view(len(logits), -1).mean(1)

    def _searched(self, anatomy: Any, scored: tuple[nn.Module, Any], inputs: Any, share: Any, budget: float) -> Any:
        """The largest model within the budget between the first ratio in sixteenths that meets it and the one before.

        The share may rise again as the ratio does: a layer that would lose everything loses nothing.
        """
        least, before = 1.0, 0.0
        for ratio in (step / _STEPS for step in range(1, _STEPS)):
            best = self._pruned(anatomy, scored, inputs, ratio)
            if (found := share(best)) <= budget:
                break
            least, before = min(least, found), ratio
        else:
            raise PeerFailure(f"no ratio leaves {budget:.1%} or less: the least is {least:.1%}")
        low, high = before, ratio
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            model = self._pruned(anatomy, scored, inputs, middle)
            if share(model) <= budget:
                best, high = (model if share(model) >= share(best) else best), middle
            else:
                low = middle
        return best

    def _pruned(self, anatomy: Any, scored: tuple[nn.Module, Any], inputs: Any, ratio: float) -> nn.Module:
        """A copy that has lost about `ratio` of its heads and neurons, and runs."""
        import torch_pruning as tp

        with _failing(f"at ratio {ratio:.3g}", self.limit), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of parameters that belong to no layer: embeddings, which stay
            model, importance = copy.deepcopy(scored)
            for own, other in zip(scored[0].parameters(), model.parameters(), strict=True):
                other.grad = None if own.grad is None else own.grad.clone()
            heads, left_alone = _roles(anatomy, model)
            pruner = tp.pruner.BasePruner(
                model,
                inputs,
                importance=importance,
                global_pruning=self.global_pruning,
                pruning_ratio=ratio,
                ignored_layers=left_alone,
                num_heads=heads,
                in_channel_groups={},  # its defaults are one object for all models
                out_channel_groups={},
                prune_num_heads=True,
                prune_head_dims=False,
                head_pruning_ratio=ratio,
                forward_fn=_traced,
            )
            for group in pruner.step(interactive=True):
                group.prune()
        _follow(anatomy, scored[0], model)
        model.zero_grad()
        with _failing(_DOES_NOT_RUN), torch.no_grad():
            model(**inputs)
        return model.eval()


def _choose(name: str, value: Any, known: tuple[Any, ...]) -> None:
    if value not in known:
        raise pyprune.InputError(f"{name}={value!r}: choose one of {', '.join(map(str, known))}")


def _traced(model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits, without a cache of keys and values: the search for dependencies does not end where there is one."""
    cache = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    return logits_of(run(model, {**inputs, **cache}))


def _roles(anatomy: Any, model: nn.Module) -> tuple[dict[nn.Module, int], list[nn.Module]]:
    """Heads of the projections in front of attention, and the modules whose outputs stay as wide as they are."""
    heads, cut = {}, set()
    for block in anatomy.blocks:
        cuts = [c for c in block.units.cuts if c.dim == 0 and model.get_parameter(c.tensor).dim() > 1]
        cut |= {c.module for c in cuts}
        if block.units.axis not in _HEADS:
            continue
        width = min(c.width for c in cuts)
        for name in {c.module for c in cuts}:  # fused ones hold several matrices: one cut, or one place, for each
            places = sum(c.repeats for c in cuts if c.module == name)
            module = model.get_submodule(name)
            heads[module] = module.weight.shape[0] // (width * places)
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Embedding)
    return heads, [m for name, m in model.named_modules() if isinstance(m, kinds) and name not in cut]


def _units(anatomy: Any, dense: nn.Module, model: nn.Module) -> dict[str, int]:
    """Units of every group that are left in `model`, by the shapes of its tensors. Raises PeerFailure."""
    kept = {}
    for group in anatomy.all_groups:
        found = set()
        for cut in group.cuts:
            now, before = (m.get_parameter(cut.tensor).shape[cut.dim] for m in (model, dense))
            found.add(group.size * now / before)
        if len(found) > 1 or not min(found).is_integer():
            raise PeerFailure(f"{group.name}: tensors of one unit differ in what they lost, or lost a part of it")
        kept[group.name] = int(min(found))
    return kept


def _cost(anatomy: Any, dense: nn.Module, model: nn.Module, length: float) -> dict[str, float]:
    kept = _units(anatomy, dense, model)
    return {"flops": anatomy.flops(length, kept), "params": anatomy.params(kept)}


def _follow(anatomy: Any, dense: nn.Module, model: nn.Module) -> None:
    """Set what modules remember of their sizes, which torch-pruning leaves to its users."""
    kept = _units(anatomy, dense, model)
    for group in anatomy.groups:
        for attribute in group.attributes:
            if not attribute.name.startswith("config."):  # the config is that of all layers
                setattr(model.get_submodule(attribute.module), attribute.name, attribute.value(kept[group.name]))


@contextmanager
def _failing(where: str, limit: float = 0.0) -> Iterator[None]:
    """Whatever the other package raises, as a PeerFailure of one line; so are more than `limit` seconds (0: none)."""

    def late(*_: Any) -> None:
        raise TimeoutError(f"not done after {limit:g} s")

    if limit:
        old = signal.signal(signal.SIGALRM, late)
        signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        yield
    except Exception as error:
        reason = (str(error).strip() or "no message").split("\n")[0]
        frame = traceback.extract_tb(error.__traceback__)[-1]
        line = "" if frame.name == late.__name__ else f" ({Path(frame.filename).name}:{frame.lineno})"
        raise PeerFailure(f"{where}: {type(error).__name__}: {reason}{line}") from error
    finally:
        if limit:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, old)
