"""Proof that nothing was lost on the way: masked model = sliced model = reloaded model."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pyprune.capture.collect import frozen
from pyprune.capture.masking import masked
from pyprune.core.anatomy import Adapter, Anatomy
from pyprune.core.errors import InputError
from pyprune.core.layers import matrix
from pyprune.core.plan import Plan
from pyprune.core.storage import read_tensors, write_tensors
from pyprune.core.units import group_kind
from pyprune.models.adapter import adapter_for, asked_axes
from pyprune.models.discovered import found_line as found_line
from pyprune.models.inputs import example_inputs
from pyprune.models.loading import load
from pyprune.models.saving import write_checkpoint
from pyprune.slicing.check import max_difference, tensors_of
from pyprune.slicing.slice import slice_

# Not called *.safetensors: servers take every file of that name for weights.
REFERENCE_FILE = "pyprune_reference.st"

# Up to this size the masked and the sliced model are compared in float64, where rounding cannot hide a wrong channel.
_DOUBLE_PARAMETERS = 500_000_000
# Outputs differ by summation order alone; 2^10 roundings of the largest output is far below one misplaced channel.
_ROUNDINGS = 1024
# But 2^10 roundings of bf16 are 8 times the largest output, and of fp16 all of it: no difference would count.
_LARGEST_SHARE = 0.05
# Stored at most: enough entries of each output to notice a difference, few enough to be small for any vocabulary.
_REFERENCE_ENTRIES = 65_536
_TOKENS = ("input_ids", "decoder_input_ids")


@dataclass(frozen=True)
class Check:
    """One comparison: the largest absolute difference of two outputs and the most that counts as equal.

    `axes` are those of the plan that the compared models went through, where they went through one.
    """

    name: str
    difference: float
    allowed: float
    axes: tuple[str, ...] = ()

    @property
    def equal(self) -> bool:
        return self.difference <= self.allowed

    def __str__(self) -> str:
        allowed = "bitwise" if self.allowed == 0 else f"allowed {self.allowed:.1e}"
        verdict = "equal" if self.equal else "DIFFERENT"
        return f"{self.name:<20} max abs difference {self.difference:.3e} ({allowed}): {verdict}"


def random_plan(anatomy: Anatomy, keep: float, seed: int) -> Plan:
    """Random units, a share of about `keep` of every group (different in every group), with one attention and one
    feed-forward block emptied, both in layers that stay: the hardest case for slicing and reloading."""
    if not 0 <= keep <= 1:
        raise InputError(f"keep={keep} must lie between 0 and 1")
    generator = torch.Generator().manual_seed(seed)
    kept = {}
    for g in anatomy.groups:
        count = round(g.size * min(1.0, keep * float(0.75 + 0.5 * torch.rand((), generator=generator))))
        units = torch.randperm(g.size, generator=generator)
        if anatomy.vocabulary and g.axis == "vocab":
            units = torch.tensor(anatomy.vocabulary.closed(units.tolist()))
        kept[g.name] = units[: max(count, g.least)]
    for before, group in pairwise(anatomy.token_groups):
        if group_kind(before.units) == group_kind(group.units):  # tokens that are gone do not come back
            seen = {before.positions[unit] for unit in kept[before.units.name].tolist()}
            left = [unit for unit, position in enumerate(group.positions) if position in seen]
            kept[group.units.name] = torch.tensor(left[: max(len(left) - 1, 1)])
    apart = [block for block in anatomy.blocks if block.shared]
    for block in apart[:1]:  # one of them loses whole KV groups, and stays as its family knows it
        heads = block.shared.kept(kept[block.units.name])[: max(1, block.shared.units.size // 2)].tolist()
        kept[block.units.name] = torch.tensor([unit for unit, head in enumerate(block.shared.of) if head in heads])
    lost = anatomy.lost_layers(kept)
    groups = [block.units for block in anatomy.blocks if block.layer_path not in lost and not block.units.least]
    if keep < 1:
        for axis in ("neurons", "attention"):
            blocks = [g for g in groups if (g.axis == "neurons") == (axis == "neurons")]
            if blocks:
                emptied = blocks[int(torch.randint(len(blocks), (), generator=generator))]
                kept[emptied.name] = torch.empty(0, dtype=torch.int64)
    return Plan(kept, {g.name: g.size for g in anatomy.groups}, 1.0, {"random": seed, "keep": keep})


def verify_model(
    model: nn.Module,
    plan: Plan | None = None,
    pruned: nn.Module | None = None,
    keep: float = 0.5,
    seed: int = 0,
    axes: Sequence[str] | None = None,
) -> list[Check]:
    """Compare masked, sliced and reloaded models for `plan` (default: `random_plan(keep, seed)` of `axes` and those of
    blocks; `axes` None: every axis that `model` has, of which `models.adapter.asked_axes` says which it cannot be
    pruned along).

    `pruned` is the sliced model that `plan` and tuning made of `model`; without it `model` is sliced here. *Masked* is
    the dense model that carries the sliced model's tuned output projections, with the removed units masked.
    """
    adapter = adapter_for(model)
    if plan is not None:
        axes = plan.axes
    elif axes is None:
        axes = [axis for axis, refusal in asked_axes(model, together=True).items() if not refusal]
    anatomy = adapter.anatomy(model, axes)
    plan = random_plan(anatomy, keep, seed) if plan is None else plan
    plan.check(anatomy)
    if pruned is None:
        pruned = slice_(copy.deepcopy(model), adapter, plan)
    # A smaller vocabulary has other numbers for the same tokens.
    made = example_inputs(pruned if "vocab" in plan.axes else model, 2, 16, seed)
    inputs = {k: v.to(next(model.parameters()).device) for k, v in made.items()}
    tried = tuple(dict.fromkeys(group.axis for group in anatomy.all_groups))
    checks = [_masked_is_sliced(model, pruned, adapter, anatomy, plan, inputs), _sliced_is_reloaded(pruned, inputs)]
    return [replace(check, axes=tried) for check in checks]


@torch.no_grad()
def _masked_is_sliced(
    model: nn.Module, pruned: nn.Module, adapter: Adapter, anatomy: Anatomy, plan: Plan, inputs: dict[str, torch.Tensor]
) -> Check:
    own = next(model.parameters()).dtype
    dtype = torch.float64 if sum(p.numel() for p in model.parameters()) <= _DOUBLE_PARAMETERS else own
    twin, sliced = copy.deepcopy(model).to(dtype), copy.deepcopy(pruned).to(dtype)
    pairs = zip(anatomy.blocks, adapter.anatomy(sliced).blocks, strict=False)
    # Nothing is tuned that lost layers or width.
    for block, small in () if {"layers", "hidden"} & set(plan.axes) else pairs:
        if block.site != "projection":
            continue  # routed experts are not tuned
        wide, narrow = twin.get_submodule(block.projection), sliced.get_submodule(small.projection)
        channels = plan.mask(block.units.name).repeat_interleave(block.units.width).to(wide.weight.device)
        matrix(wide)[:, channels] = matrix(narrow)
        if wide.bias is not None:
            wide.bias.copy_(narrow.bias)
    for double in (twin, sliced):
        if dtype == torch.float64 and double.config._experts_implementation not in (None, "eager"):
            double.set_experts_implementation("eager")  # products of all experts at once know no float64
    inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}
    with frozen(twin), frozen(sliced):
        with masked(twin, anatomy, plan):
            expected = _outputs(twin, dense_tokens(inputs, plan))
        found = _outputs(sliced, inputs)
    largest = max(float(t.abs().max()) for _, t in tensors_of(found) if t.numel())
    return Check("masked = sliced", max_difference(expected, found, plan), allowed(dtype, largest))


def dense_tokens(inputs: dict[str, torch.Tensor], plan: Plan) -> dict[str, torch.Tensor]:
    """`inputs` of a pruned model for the dense one: the same tokens by their old numbers."""
    if "vocab" not in plan.axes:
        return inputs
    old = {name: plan.kept["vocab"].to(ids.device)[ids] for name, ids in inputs.items() if name in _TOKENS}
    return inputs | old


def allowed(dtype: torch.dtype, largest: float) -> float:
    """The difference that rounding explains between outputs of up to `largest`, computed in `dtype`."""
    return min(_ROUNDINGS * torch.finfo(dtype).eps, _LARGEST_SHARE) * max(1.0, largest)


@torch.no_grad()
def _sliced_is_reloaded(pruned: nn.Module, inputs: dict[str, torch.Tensor]) -> Check:
    inputs = {k: v.to(pruned.dtype) if v.is_floating_point() else v for k, v in inputs.items()}
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(pruned, None, Path(folder))
        reloaded = type(pruned).from_pretrained(folder, dtype=pruned.dtype)
        reloaded.to(next(pruned.parameters()).device)
        for parameter in reloaded.parameters():
            # Where it lies in a file is not aligned as torch aligns memory, and products would be rounded otherwise.
            parameter.data = parameter.data.clone()
    _take_kernels_(reloaded, pruned)
    with frozen(pruned), frozen(reloaded):
        difference = max_difference(_outputs(pruned, inputs), _outputs(reloaded, inputs))
    return Check("sliced = reloaded", difference, 0.0)


def _take_kernels_(model: nn.Module, like: nn.Module) -> None:
    """Let every module of `model` attend and route by the kernels of its counterpart; others sum in another order."""
    for mine, theirs in zip(model.modules(), like.modules(), strict=True):
        for kernel in ("_attn_implementation", "_experts_implementation"):
            wanted = getattr(getattr(theirs, "config", None), kernel, None)
            if wanted != getattr(getattr(mine, "config", None), kernel, None):
                setattr(mine.config, kernel, wanted)


def _outputs(model: nn.Module, inputs: dict[str, torch.Tensor]) -> Any:
    """What `model` puts out; what it draws, such as ViLT an order of patches, it draws alike every time."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return model(**inputs)


@torch.no_grad()
def write_reference(model: nn.Module, folder: Path) -> None:
    """Store small inputs and what `model` puts out for them beside its checkpoint."""
    device = next(model.parameters()).device
    inputs = {k: v.to(device) for k, v in example_inputs(model, 2, 16).items()}
    with frozen(model):
        outputs = _entries(_outputs(model, inputs))
    tensors = {f"inputs/{k}": v for k, v in inputs.items()} | {f"outputs/{k}": v for k, v in outputs.items()}
    write_tensors(folder / REFERENCE_FILE, tensors, {"torch": torch.__version__, "device": device.type})


def _entries(outputs: Any) -> dict[str, torch.Tensor]:
    flat = {name.removeprefix("output."): tensor.float().flatten() for name, tensor in tensors_of(outputs)}
    return {k: v[:: max(1, v.numel() // _REFERENCE_ENTRIES)].clone() for k, v in flat.items()}


@torch.no_grad()
def verify_checkpoint(path: str | Path, device: str = "cpu") -> list[Check]:
    """Load a pruned checkpoint and replay its stored reference.

    Bitwise equality is not promised between machines (kernels sum in other orders): rounding in the model's dtype is
    allowed.
    """
    tensors, _ = read_tensors(Path(path) / REFERENCE_FILE)
    model, _ = load(path, device=device)
    inputs = {k.removeprefix("inputs/"): v.to(device) for k, v in tensors.items() if k.startswith("inputs/")}
    with frozen(model):
        found = _entries(_outputs(model, inputs))
    expected = {k.removeprefix("outputs/"): v for k, v in tensors.items() if k.startswith("outputs/")}
    if not expected:
        raise InputError(f"{Path(path) / REFERENCE_FILE}: holds no outputs to compare with")
    largest = max(float(v.abs().max()) for v in expected.values())
    difference = max_difference(expected, {k: v.cpu() for k, v in found.items()})
    return [Check("stored = reloaded", difference, allowed(model.dtype, largest))]
