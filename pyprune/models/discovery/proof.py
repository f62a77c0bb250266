"""Masked = sliced for a table that was only guessed, on the user's own inputs."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from pyprune.capture.masking import masked
from pyprune.core.anatomy import Anatomy
from pyprune.core.errors import PyPruneError
from pyprune.core.plan import Plan
from pyprune.models.adapter import TransformersAdapter
from pyprune.models.discovered import PRUNED_FAMILY
from pyprune.slicing.check import max_difference
from pyprune.slicing.slice import slice_

Inputs = Mapping[str, torch.Tensor]
# What forwards raise that were given widths which they did not expect.
_FAILURES = (
    *(PyPruneError, RuntimeError, ValueError, IndexError, TypeError, AttributeError, AssertionError, KeyError),
    ZeroDivisionError,
)
_DOUBLE_PARAMETERS = 500_000_000
_ROUNDINGS = 1024


class Prover:
    """A copy of the model in float64 (float32 above 500 M parameters), and what it puts out.

    Compared are the outputs of one call and, of a model with a cache, those of its last token after a call for the
    others; under the attention implementation that the model has, and under the plain one.
    """

    def __init__(self, model: Any, inputs: Inputs) -> None:
        size = sum(p.numel() for p in model.parameters())
        self.dtype = torch.float64 if size <= _DOUBLE_PARAMETERS else torch.float32
        self.model = copy.deepcopy(model).to(self.dtype).eval().requires_grad_(False)
        self.inputs = {k: v.to(self.dtype) if v.is_floating_point() else v for k, v in inputs.items()}
        own = getattr(model.config, "_attn_implementation", None)
        exchanged = own not in (None, "eager") and model._can_set_attn_implementation()
        self.kernels = [own, "eager"] if exchanged else [own]
        self.cached = True
        try:
            _step(self.model, self.inputs)
        except _FAILURES:
            self.cached = False
        self.dense = {kernel: self._run(self.model, kernel) for kernel in self.kernels}

    def fails(self, table: dict[str, Any], seed: int = 0, axes: Sequence[str] = ()) -> str:
        """Why the model with this table is not the same masked and sliced; empty when it is.

        `axes` are those beyond the blocks that lose units too.
        """
        adapter = TransformersAdapter()
        with _described(self.model, table):
            try:
                anatomy = adapter.anatomy(self.model, axes)
                plan = _some(anatomy, seed)
                sliced = slice_(copy.deepcopy(self.model), adapter, plan)
                for kernel in self.kernels:
                    with masked(self.model, anatomy, plan):
                        expected = self._run(self.model, kernel)
                    largest = max([1.0, *(float(t.abs().max()) for t in _tensors(expected) if t.numel())])
                    allowed = _ROUNDINGS * torch.finfo(self.dtype).eps * largest
                    if not max_difference(expected, self.dense[kernel]) > allowed:
                        return "nothing changes without it"
                    difference = max_difference(expected, self._run(sliced, kernel), plan)
                    if not difference <= allowed:
                        return f"sliced, it differs by {difference:.1e} from what it is masked"
            except _FAILURES as error:
                return " ".join(f"{type(error).__name__}: {error}".split())[:160]
        return ""

    def _run(self, model: Any, kernel: str | None) -> list[Any]:
        if kernel is not None and len(self.kernels) > 1:
            model.set_attn_implementation(kernel)
        with torch.random.fork_rng():  # some forwards draw random numbers
            torch.manual_seed(0)
            outputs = [_call(model, self.inputs)]
            if self.cached:
                outputs.append(_step(model, self.inputs))
        return outputs


@torch.no_grad()
def _call(model: Any, inputs: Inputs) -> Any:
    return model(**inputs, **({"use_cache": False} if hasattr(model.config, "use_cache") else {}))


@torch.no_grad()
def _step(model: Any, inputs: Inputs) -> Any:
    """Outputs for the last token of the first sample, which has no padding, after the others went to the cache.

    AttributeError when the model has no cache.
    """
    name = "decoder_input_ids" if "decoder_input_ids" in inputs else "input_ids"
    if name not in inputs:
        raise AttributeError("the model has no cache of tokens")
    others = {k: v[:1] for k, v in inputs.items() if k != name} if name == "decoder_input_ids" else {}
    tokens = inputs[name][:1]
    cache = model(**others, **{name: tokens[:, :-1]}, use_cache=True).past_key_values
    if cache is None:
        raise AttributeError("the model has no cache")
    outputs = model(**others, **{name: tokens[:, -1:]}, past_key_values=cache, use_cache=True)
    return {k: v for k, v in outputs.items() if k != "past_key_values"}


def _some(anatomy: Anatomy, seed: int) -> Plan:
    """A random half of every group."""
    generator = torch.Generator().manual_seed(seed)
    plan = Plan.keep_all(anatomy)
    for group in anatomy.groups:
        order = torch.randperm(group.size, generator=generator)
        plan.kept[group.name] = order[: max(group.size // 2, 1)].sort().values
    return plan


@contextmanager
def _described(model: Any, table: dict[str, Any]) -> Iterator[None]:
    setattr(model.config, PRUNED_FAMILY, table)
    try:
        yield
    finally:
        delattr(model.config, PRUNED_FAMILY)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
