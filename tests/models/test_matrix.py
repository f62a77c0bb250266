"""The whole zoo, every plan: masked = sliced = reloaded by another process, and costs are what is counted."""

import copy

import pytest
import torch
from matrix import check_reload, check_slices, flops, inputs_of, run, save, weights

from pyprune.core.plan import Plan
from pyprune.models.adapter import adapter_for
from pyprune.models.inputs import example_inputs
from pyprune.slicing.slice import slice_
from pyprune.testing.models import random_plan, tiny_model
from pyprune.testing.zoo import ZOO

PLANS = ("random", "emptied", "uniform", "keep-all")
HEADS = [(variant, head) for variant, tiny in ZOO.items() for head in tiny.heads]


def made(kind, anatomy):
    if kind == "random":
        return random_plan(anatomy, seed=3, emptied=False)
    plan = Plan.keep_all(anatomy)
    if kind == "emptied":  # one block of every axis of every stack
        last = {(g.axis, g.name.partition("layers.")[0], "cross" in g.name): g for g in anatomy.groups}
        plan.kept |= {group.name: torch.arange(group.least) for group in last.values()}
    if kind == "uniform":
        plan.kept = {g.name: torch.arange(g.size - (g.size + 1) // 2, g.size) for g in anatomy.groups}
    return plan


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Where the matrix leaves what it pruned, for one process to reload."""
    return tmp_path_factory.mktemp("matrix")


@pytest.mark.parametrize("variant", ZOO)
def test_masked_equals_sliced(variant, checkpoints):
    dense = tiny_model(variant, ZOO[variant].heads[0], torch.float64)
    adapter = adapter_for(dense)
    anatomy = adapter.anatomy(dense)
    check_slices(dense, adapter, (), {kind: made(kind, anatomy) for kind in PLANS}, checkpoints / variant)


@pytest.mark.parametrize(("variant", "head"), [case for case in HEADS if case[1] != ZOO[case[0]].heads[0]])
def test_masked_equals_sliced_under_every_head(variant, head, checkpoints):
    model = tiny_model(variant, head, torch.float32)
    adapter = adapter_for(model)
    slice_(model, adapter, made("random", adapter.anatomy(model)))
    inputs = inputs_of(model)
    save(model, inputs, run(model, inputs), checkpoints / f"{variant}-{head}")


def test_another_process_reloads_all_of_them(checkpoints):
    check_reload(checkpoints)


@pytest.mark.parametrize("variant", ZOO)
def test_costs_are_what_is_counted(variant):
    """What a plan saves, counted on the models themselves: weights of matrices, and FLOPs of one forward pass."""
    dense = tiny_model(variant, ZOO[variant].heads[0], attention="eager")
    adapter = adapter_for(dense)
    anatomy = adapter.anatomy(dense)
    plan = made("random", anatomy)
    # A table that is projected once a pass, whatever the batch, makes the cost of one sequence exact and no other.
    batch, length = 1 if any(g.cost.per_pass for g in anatomy.groups) else 2, 12
    inputs = example_inputs(dense, batch, length)
    sliced = slice_(copy.deepcopy(dense), adapter, plan)
    assert weights(dense) - weights(sliced) == anatomy.params() - anatomy.params(plan.counts)
    saved = anatomy.flops(length) - anatomy.flops(length, plan.counts)
    assert flops(dense, inputs) - flops(sliced, inputs) == batch * saved
