"""Discovery: a table for a model whose type has none, found in one forward pass and proved before it is used."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from pyprune.capture.collect import frozen
from pyprune.core.errors import InputError
from pyprune.models.adapter import TransformersAdapter, has_table
from pyprune.models.discovered import PRUNED_FAMILY
from pyprune.models.discovery.candidates import Candidate, Spec, candidates
from pyprune.models.discovery.proof import Prover
from pyprune.models.discovery.trace import FoundStack, repeated, stacks, trace
from pyprune.models.hidden import HIDDEN
from pyprune.models.inputs import example_inputs, look_of
from pyprune.models.sequential import discover_sequential_


def discover_(model: Any, inputs: Mapping[str, torch.Tensor] | None = None) -> str:
    """Find what can be pruned in a transformers `model` without a table, and note it in `model.config.pruned_family`.

    One call `model(**inputs)` (default: `example_inputs`) shows which linear layers read the same tensor and which
    follow. What looks like attention or a feed-forward block, by shapes and by what its modules remember, is proved:
    masked = sliced in float64 on these inputs, and on a step with a cache. What does not fit is left out; so is the
    hidden width, unless it passes the same proof. Returns one line that says what was found, on which inputs it was
    proved, and what was left out.

    InputError when nothing fits, naming the modules, when layers are shared, or when the forward cannot be run.
    """
    if isinstance(model, nn.Sequential):
        if inputs is None:
            raise InputError('Sequential: give inputs, pyprune.discover(model, {"input": images})')
        return discover_sequential_(model, inputs)
    name, model_type = type(model).__name__, getattr(getattr(model, "config", None), "model_type", "")
    if not model_type:
        raise InputError(f"{name} is no transformers model and no Sequential: nothing is known of it")
    if has_table(model.config):
        raise InputError(f"{name}: model type {model_type!r} has a table, there is nothing to discover")
    given = example_inputs(model) if inputs is None else dict(inputs)
    device = next(model.parameters()).device
    given = {k: v.to(device, model.dtype if v.is_floating_point() else v.dtype) for k, v in given.items()}
    try:
        with frozen(model):
            calls = trace(model, given)
            prover = Prover(model, given)
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError, AssertionError) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(
            f"{name} has no table, and cannot be run on {_shapes(given)} ({type(error).__name__}: {reason}): "
            "give inputs of your own, pyprune.discover(model, inputs)"
        ) from error
    shared = repeated(calls)
    left_out: dict[str, str] = {}
    found = list(stacks(model, calls))
    tables = [_table(stack, name, prover, shared, left_out) for stack, name in zip(found, _names(found), strict=True)]
    table: dict[str, Any] = {"stacks": [stack for stack in tables if stack["parts"]]}
    why = "; ".join(f"{path}: {reason}" for path, reason in left_out.items())
    if not table["stacks"]:
        why = why or "no linear layers in a list of layers"
        raise InputError(
            f"{name}: model type {model_type!r} has no table, and discovery found nothing to prune ({why})"
        )
    if reason := prover.fails(table, seed=1):
        raise InputError(f"{name}: what discovery found fits one by one, but not together ({reason})")
    table["hidden"] = not prover.fails({**table, "hidden": True}, seed=1, axes=[HIDDEN])
    setattr(model.config, PRUNED_FAMILY, table)
    kinds = Counter(group.axis for group in TransformersAdapter().anatomy(model).groups)
    counts = ", ".join(f"{count} x {axis}" for axis, count in kinds.items())
    line = f"discovered: {counts}; proved on {_shapes(given)}" + (f"; left out: {why}" if why else "")
    table["found"] = line
    if inputs is not None:
        table["inputs"] = look_of(given)
    return line


def _table(
    stack: FoundStack, name: str, prover: Prover, shared: Mapping[str, int], left_out: dict[str, str]
) -> dict[str, Any]:
    """The table of one stack, with the parts that were proved; the reasons of others go to `left_out`."""
    tokens: list[float | None] = [None] * (1 + max(indices[0] for indices in stack.calls))
    for indices, calls in stack.calls.items():
        if calls and "input_ids" not in prover.inputs:
            tokens[indices[0]] = calls[0].tokens
    parts: list[Spec] = []
    table = {"layers": stack.layers, "name": name, "tokens": tokens}
    claimed: set[str] = set()
    failed: list[tuple[Candidate, str, str]] = []
    for candidate, root in _candidates(stack, prover, shared, left_out):
        if not claimed.isdisjoint(candidate.claimed):
            continue
        for spec in candidate.specs:
            labelled = {**spec, **_label(spec, parts)}
            reason = prover.fails({"stacks": [{**table, "parts": [labelled]}]})
            if not reason:
                parts.append(labelled)
                claimed.update(candidate.claimed)
                break
            failed.append((candidate, root, reason))
    for candidate, root, reason in failed:
        if claimed.isdisjoint(candidate.claimed):
            left_out.setdefault(f"{root}.{candidate.claimed[-1]}", reason)
    return {**table, "parts": parts}


def _names(found: list[FoundStack]) -> list[str]:
    """What tells the stacks apart: nothing for one, the paths of their owners where these differ."""
    paths = [stack.layers.replace(".*", "") for stack in found]
    owners = [path.rpartition(".")[0] for path in paths]
    return [""] if len(found) == 1 else (owners if all(owners) and len({*owners}) == len(owners) else paths)


def _candidates(
    stack: FoundStack, prover: Prover, shared: Mapping[str, int], left_out: dict[str, str]
) -> Iterator[tuple[Candidate, str]]:
    """Candidates of all layers, each kind once, with the path of the first layer that has it."""
    known: set[str] = set()
    for indices, calls in stack.calls.items():
        root = stack.roots[indices]
        again = [path for path in shared if path.startswith(f"{root}.")]
        if again:
            left_out[again[0]] = f"called {shared[again[0]]} times in one pass, its layer is shared"
            continue
        for candidate in candidates(prover.model.get_submodule(root), calls):
            key = json.dumps(candidate.specs, sort_keys=True)
            if key not in known:
                known.add(key)
                yield candidate, root


def _label(spec: Spec, parts: list[Spec]) -> dict[str, str]:
    """A name for the groups of a part, where a layer may have several of its kind."""
    kind = spec["kind"], spec.get("cross", False)
    earlier = sum((part["kind"], part.get("cross", False)) == kind for part in parts)
    if not earlier:
        return {}
    axis = "neurons" if spec["kind"] == "feed_forward" else ("kv_groups" if "queries_per_unit" in spec else "heads")
    return {"label": f"{'cross_' if kind[1] else ''}{axis}{earlier + 1}"}


def _shapes(inputs: Mapping[str, torch.Tensor]) -> str:
    return ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in inputs.items())
