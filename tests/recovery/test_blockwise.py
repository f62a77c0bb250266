"""The walk: every batch crosses every half-block once per model, and one block's activations live at a time."""

import copy
import math
import weakref
from collections import Counter

import pytest
import torch
from explicit import anatomy_of, pruned_pair, samples_of

from pyprune.capture.collect import frozen
from pyprune.core.stages import Stages
from pyprune.recovery import blockwise
from pyprune.recovery.blockwise import Outcome, Walk, fit_blocks
from pyprune.recovery.mask_tuning import tune_masks
from pyprune.recovery.refit import refit

HALVES = {
    "bert": ("attention.self.query", "attention.output.dense", "intermediate.dense", "output.dense"),
    "distilbert": ("attention.q_lin", "attention.out_lin", "ffn.lin1", "ffn.lin2"),
    "llama": ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"),
}


@pytest.mark.parametrize("recover", [refit, tune_masks])
@pytest.mark.parametrize("variant", HALVES)
def test_every_batch_crosses_every_half_block_once_per_model(variant, recover):
    teacher, student = pruned_pair(variant)
    batches = samples_of().batches(max_tokens=40)
    calls = Counter()
    for which, model in (("teacher", teacher), ("student", student)):
        for path in anatomy_of(model).layers:
            for half in HALVES[variant]:
                module = model.get_submodule(f"{path}.{half}")
                module.register_forward_hook(lambda *_, key=(which, path, half): calls.update([key]))
    recover(student, anatomy_of(student), teacher, anatomy_of(teacher), batches)
    assert len(calls) == 2 * 3 * 4
    assert set(calls.values()) == {len(batches)}


def test_the_activations_of_one_block_live_at_a_time(monkeypatch):
    teacher, student = pruned_pair("bert")
    batches = samples_of().batches(max_tokens=20)
    alive, peak = weakref.WeakSet(), []
    context = blockwise.context

    def counted(*args):
        x = context(*args)
        alive.add(x)
        peak.append(len(alive))
        return x

    monkeypatch.setattr(blockwise, "context", counted)
    refit(student, anatomy_of(student), teacher, anatomy_of(teacher), batches)
    assert len(peak) == 2 * 6 * len(batches)
    # The student's block in hand, the teacher's batch in hand, and one that is just being replaced.
    assert max(peak) <= len(batches) + 2
    assert len(alive) <= 1


class Recorded:
    def __init__(self):
        self.rows = []

    def add(self, x, target):
        self.rows.append((len(x), len(target)))

    def solve(self):
        return Outcome("recorded", True)


def test_real_tokens_arrive_once_and_by_the_thousands(monkeypatch):
    monkeypatch.setattr(blockwise._Rows, "_AT_LEAST", 60)
    teacher, student = pruned_pair("bert")
    samples, fits = samples_of(), []

    def fit(projection, block):
        fits.append(Recorded())
        return fits[-1]

    anatomies = anatomy_of(student), anatomy_of(teacher)
    batches = samples.batches(max_tokens=50, max_padding=1.0)
    outcomes = fit_blocks(student, anatomies[0], teacher, anatomies[1], batches, fit, Stages(quiet=True), "")
    assert [outcome.block for outcome in outcomes] == ["recorded"] * 6
    for recorded in fits:
        assert all(x == target for x, target in recorded.rows)
        assert sum(x for x, _ in recorded.rows) == int(samples.lengths.sum())
        assert all(x >= 60 for x, _ in recorded.rows[:-1])


def test_skipped_blocks_still_carry_the_streams():
    teacher, student = pruned_pair("llama")
    anatomies, seen = (anatomy_of(student), anatomy_of(teacher)), []

    def fit(projection, block):
        if block.units.axis == "neurons":
            return Outcome(block.units.name, False, "skipped")
        seen.append(Recorded())
        return seen[-1]

    batches = samples_of().batches()
    outcomes = fit_blocks(student, anatomies[0], teacher, anatomies[1], batches, fit, Stages(quiet=True), "")
    assert [outcome.reason for outcome in outcomes] == ["", "skipped"] * 3
    assert all(sum(x for x, _ in recorded.rows) == int(samples_of().lengths.sum()) for recorded in seen)


@pytest.mark.parametrize("variant", ["bert", "llama", "gpt_neox"])
def test_what_there_is_no_room_for_is_computed_again(variant):
    """The same weights, whatever is kept; and with no room nothing is."""
    teacher, student = pruned_pair(variant)
    batches = samples_of().batches(max_tokens=40)
    found = []
    for memory in (math.inf, 60_000, 0):
        other = copy.deepcopy(student)
        outcomes = refit(other, anatomy_of(other), teacher, anatomy_of(teacher), batches, memory=memory)
        assert any(outcome.fitted for outcome in outcomes)
        found.append(list(other.parameters()))
    for others in found[1:]:
        for a, b in zip(found[0], others, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_no_more_is_kept_than_there_is_room_for():
    teacher, student = pruned_pair("bert")
    batches = samples_of().batches(max_tokens=40)
    kept = []
    for memory in (0, 60_000, math.inf):
        walk = Walk(student, anatomy_of(student), teacher, anatomy_of(teacher), batches, memory)
        with frozen(student), frozen(teacher):
            for index in range(2):
                walk.fit(index, lambda projection, block: Recorded())
        streams = [*walk.teacher.kept.values(), *walk.student.kept.values()]
        assert sum(stream.bytes for stream in streams) <= memory
        assert walk.room.bytes == memory - sum(stream.bytes for stream in streams) or memory == math.inf
        kept.append(len(streams))
    assert 0 == kept[0] < kept[1] < kept[2] == 2 * len(batches)


def test_no_graph_is_left_behind():
    teacher, student = pruned_pair("bert")
    refit(student, anatomy_of(student), teacher, anatomy_of(teacher), samples_of().batches())
    assert all(p.requires_grad and p.grad is None and p.is_leaf for p in student.parameters())
    with torch.enable_grad():
        student(samples_of().inputs[0]["input_ids"][None]).last_hidden_state.sum().backward()
    assert all(p.grad is not None for n, p in student.named_parameters() if "pooler" not in n)
