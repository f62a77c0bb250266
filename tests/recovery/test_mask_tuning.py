"""Mask tuning: the publication's solver on the whole design matrix, and what becomes of a block that it refuses."""

import copy

import numpy as np
import pytest
import torch
from explicit import anatomy_of, problem, pruned_pair, samples_of
from scipy.sparse.linalg import lsmr

from pyprune.recovery.mask_tuning import tune_masks
from pyprune.testing import numerics
from pyprune.testing.models import tiny_model


def tuned(student, teacher, samples, **batching):
    batches = samples.batches(**batching)
    return tune_masks(student, anatomy_of(student), teacher, anatomy_of(teacher), batches)


@torch.no_grad()
def published_scales(student, teacher, index, samples):
    """Scales of one block by LSMR on the normal equations of the explicit design matrix."""
    block = anatomy_of(student).blocks[index]
    projection, width = student.get_submodule(block.projection), block.units.width
    x, target = problem(student, teacher, index, samples)
    b = (target - (0 if projection.bias is None else projection.bias)).flatten()
    units = range(block.units.size)
    columns = [x[:, u * width : (u + 1) * width] @ projection.weight[:, u * width : (u + 1) * width].T for u in units]
    if block.units.axis != "neurons":
        columns.append(torch.ones_like(target))
    a = torch.stack([column.flatten() for column in columns], 1)
    ata, atb = (a.T @ a).numpy(), (a.T @ b).numpy()
    solved = lsmr(ata, atb - ata @ np.ones(len(ata)), damp=1, atol=1e-14, btol=1e-14, conlim=0, maxiter=10_000)[0]
    return 1 + torch.from_numpy(solved)[: block.units.size]


@pytest.mark.parametrize("variant", ["bert", "distilbert", "llama", "llama-mha", "llama-biased", "qwen3"])
@pytest.mark.parametrize("padding", [0.0, 1.0])
def test_equals_the_published_solver(variant, padding):
    teacher, student = pruned_pair(variant)
    samples, expected = samples_of(), copy.deepcopy(student)
    solvable = []
    for index, block in enumerate(anatomy_of(expected).blocks):
        scale = published_scales(expected, teacher, index, samples)
        solvable.append(index > 0 and float(scale.abs().max()) <= 10)
        if solvable[-1]:
            with torch.no_grad():
                expected.get_submodule(block.projection).weight.mul_(scale.repeat_interleave(block.units.width))
    outcomes = tuned(student, teacher, samples, max_padding=padding)
    assert [outcome.fitted for outcome in outcomes] == solvable
    assert sum(solvable) >= 4
    for found, truth in zip(student.parameters(), expected.parameters(), strict=True):
        if found.numel():
            # Two solvers of normal equations: float32's rounding is what is left of float64's.
            numerics.ratio(found.detach(), truth.detach(), torch.float32)


def test_scales_that_were_lost_are_found_again():
    teacher = tiny_model("bert", dtype=torch.float64)
    student = copy.deepcopy(teacher)
    scale = 0.5 + torch.rand(24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        student.encoder.layer[1].output.dense.weight.div_(scale)
    outcomes = tuned(student, teacher, samples_of())
    assert outcomes[3].after < 1e-6 < outcomes[3].before


def test_the_first_attention_is_left_alone():
    teacher, student = pruned_pair("llama")
    before = student.layers[0].self_attn.o_proj.weight.detach().clone()
    first, *others = tuned(student, teacher, samples_of())
    assert not first.fitted
    assert "as published" in first.reason
    numerics.exact(student.layers[0].self_attn.o_proj.weight.detach(), before)
    assert any(outcome.fitted for outcome in others)


def test_a_refused_block_is_reported_and_later_blocks_are_tuned():
    teacher = tiny_model("bert", dtype=torch.float64)
    student = copy.deepcopy(teacher)
    weight = student.encoder.layer[0].output.dense.weight
    with torch.no_grad():
        weight /= 15
    before = weight.detach().clone()
    outcomes = tuned(student, teacher, samples_of())
    assert not outcomes[1].fitted
    assert "exceeds 10" in outcomes[1].reason
    numerics.exact(weight.detach(), before)
    assert all(outcome.fitted for outcome in outcomes[2:])


def test_emptied_blocks_are_reported():
    teacher, student = pruned_pair("bert", emptied=True)
    outcomes = tuned(student, teacher, samples_of())
    assert [outcome.reason for outcome in outcomes if "no units" in outcome.reason] == ["no units left"] * 2
    assert not outcomes[0].fitted
    assert not outcomes[3].fitted


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", ["bert", "llama"])
def test_every_tuned_block_gets_closer(variant, dtype):
    teacher, student = pruned_pair(variant, dtype)
    outcomes = tuned(student, teacher, samples_of())
    assert {p.dtype for p in student.parameters()} == {dtype}
    assert sum(outcome.fitted for outcome in outcomes) >= 4
    for outcome in outcomes:
        if outcome.fitted:
            assert 0 <= outcome.after <= outcome.before
