"""Recovery by hand: whole design matrices, one block at a time, every block from the model's own forward."""

import copy

import torch

from pyprune.core.batches import Samples
from pyprune.models.adapter import adapter_for
from pyprune.slicing.slice import slice_
from pyprune.testing.models import random_plan, tiny_model

LENGTHS = (24, 9, 27, 15, 27, 24, 15, 27)


def anatomy_of(model):
    return adapter_for(model).anatomy(model)


def samples_of(lengths=LENGTHS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Samples([{"input_ids": torch.randint(3, 99, (n,), generator=generator)} for n in lengths])


def pruned_pair(variant, dtype=torch.float64, emptied=False, head="AutoModel", seed=1):
    """A dense model and its slice to a random plan."""
    teacher = tiny_model(variant, head, dtype)
    plan = random_plan(anatomy_of(teacher), seed, emptied)
    return teacher, slice_(copy.deepcopy(teacher), adapter_for(teacher), plan)


@torch.no_grad()
def rows_of(model, index, samples):
    """Of block `index` at all tokens, sample by sample: the input of its projection, and the stream before and after.

    Hooks in the model's own forward: the stream before a block is what its first module (or its layer) reads.
    """
    block = anatomy_of(model).blocks[index]
    projection = model.get_submodule(block.projection)
    seen = {}
    source = model.get_submodule(block.entry[0] if block.entry else block.layer_path)

    def before(_, args, kwargs):
        seen.setdefault("before", args[0] if args else kwargs["hidden_states"])

    def at(_, args, output):
        seen["x"], seen["after"] = args[0], seen["before"] + output

    handles = [source.register_forward_pre_hook(before, with_kwargs=True), projection.register_forward_hook(at)]
    found = []
    for row in samples.inputs:
        seen.clear()
        model(row["input_ids"][None])
        found.append([seen[key][0] for key in ("x", "before", "after")])
    for handle in handles:
        handle.remove()
    return tuple(torch.cat(column) for column in zip(*found, strict=True))


def problem(student, teacher, index, samples):
    """Block `index`'s projection inputs `[N, n]` and what it should put out `[N, d]`."""
    x, before, _ = rows_of(student, index, samples)
    return x, rows_of(teacher, index, samples)[2] - before


@torch.no_grad()
def distance(student, teacher, samples):
    """Mean squared difference of the last hidden states at all tokens."""
    total = 0.0
    for row in samples.inputs:
        ids = row["input_ids"][None]
        total += float((student(ids).last_hidden_state - teacher(ids).last_hidden_state).double().square().mean())
    return total / len(samples)
