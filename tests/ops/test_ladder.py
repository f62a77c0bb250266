"""What every op owes: `pyprune.testing.ladder` over all ops, the backends that run on this CPU, and all their cases."""

import pytest
import torch
from torch import library

import pyprune.ops as ops
from pyprune.testing import ladder, numerics
from pyprune.testing.cases import batches, cases, complete, leaves, tensors

OPS = tuple(ops.OPS.values())
PAIRS = [
    (op, candidate)
    for op in OPS
    for candidate in op.candidates
    if "cpu" in candidate.devices and candidate.available() is None
]
KERNELS = [(op, candidate) for op, candidate in PAIRS if candidate.backend != "torch"]


def each(pairs):
    ids = [f"{op.name}-{candidate.backend}" for op, candidate in pairs]
    return pytest.mark.parametrize(("op", "candidate"), pairs, ids=ids)


def every_op(chosen=OPS):
    return pytest.mark.parametrize("op", chosen, ids=lambda op: op.name)


def differentiable(op):
    return [args for args in op.samples() if any(t.requires_grad for t in leaves(args))]


DIFFERENTIABLE = [op for op in OPS if differentiable(op)]


def over_cases(op, candidate, check):
    """`check` on the arguments of every case that the candidate supports; which case it was stands in the error."""
    count = 0
    for name, args in cases(op, "cpu", tiny=True):
        if candidate.supports(*args)[0]:
            count += 1
            try:
                check(op, candidate, args)
            except Exception as error:
                raise AssertionError(f"{op.name} {candidate.backend}, {name}: {error}") from error
    assert count >= 5


@each(PAIRS)
def test_against_float64(op, candidate):
    over_cases(op, candidate, ladder.accurate)


@each(KERNELS)
def test_same_bits_again(op, candidate):
    over_cases(op, candidate, ladder.repeatable)


@each(KERNELS)
def test_same_bits_with_any_threads(op, candidate):
    over_cases(op, candidate, ladder.same_with_any_threads)


@each(KERNELS)
def test_inside_its_buffers(op, candidate):
    over_cases(op, candidate, ladder.inside_its_buffers)


@each([(op, candidate) for op, candidate in KERNELS if batches(op, "cpu")])
def test_same_bits_in_any_batch(op, candidate):
    assert ladder.same_in_every_batch(op, candidate, "cpu") >= 2


@every_op()
def test_opcheck(op):
    for args in op.samples():
        library.opcheck(op.overload, args)


@each([(op, candidate) for op, candidate in PAIRS if op in DIFFERENTIABLE])
def test_gradients(op, candidate):
    for args in differentiable(op):
        ladder.true_gradients(op, candidate, complete(op, args))


@every_op(DIFFERENTIABLE)
def test_gradcheck(op):
    for args in differentiable(op):
        assert torch.autograd.gradcheck(op.overload, ladder.widened(args))


@each([(op, candidate) for op, candidate in PAIRS if op not in DIFFERENTIABLE and not ladder.mutated(op)])
def test_no_result_of_an_op_without_gradient_looks_as_if_it_had_one(op, candidate):
    """Whatever the inputs: a backward through it fails, and does not leave parts of the graph out."""
    for args in op.samples():
        given = tensors(complete(op, args), lambda t: t.clone().requires_grad_(t.is_floating_point()))
        if candidate.supports(*given)[0]:
            with ops.backend(f"{op.name}={candidate.backend}"):
                assert not any(out.requires_grad for out in leaves(getattr(ops, op.name)(*given)))


@every_op()
def test_compiles_as_one_graph(op):
    """With gradients where there are any, to the bits of the plain call."""
    args = next(iter(differentiable(op) or op.samples()))

    def run(*given):
        return ladder.results(op, op.overload, given)

    torch._dynamo.reset()  # the limit of recompilations counts for the code of the line below, whatever the op
    compiled = torch.compile(lambda *given: op.overload(*given), fullgraph=True)
    plain = ladder.results(op, op.overload, args)
    for found, expected in zip(ladder.results(op, compiled, args), plain, strict=True):
        numerics.exact(found.detach(), expected.detach())
    if op in DIFFERENTIABLE:
        for found, expected in zip(ladder.gradients(compiled, args), ladder.gradients(op.overload, args), strict=True):
            numerics.exact(found, expected)


@every_op()
def test_bytes_and_flops_are_positive(op):
    args = complete(op, next(iter(op.samples())))
    assert op.bytes_moved(*args) > 0
    assert op.flops(*args) >= 0


def test_an_access_outside_its_buffers_is_noticed():
    op = ops.OPS["prod_reduce"]
    args = complete(op, next(iter(op.samples())))
    reference = op.candidates[-1].run

    def reads_before(x, *rest):
        out = reference(x.as_strided(x.shape, x.stride(), max(x.storage_offset() - 1, 0)), *rest)
        return x.new_empty(out.shape).copy_(out)

    def writes_behind(x, y, *rest):
        out = reference(x, y, *rest)
        into = x.new_empty(out.shape)
        into.copy_(out)
        if into.untyped_storage().nbytes() > into.nbytes:  # torch itself refuses to leave an unguarded one
            into.as_strided((out.numel() + 1,), (1,)).fill_(3)
        return into.copy_(out)

    def changes_an_input(x, y, *rest):
        out = reference(x, y, *rest)
        y.add_(1)
        return x.new_empty(out.shape).copy_(out)

    for run, message in (
        (reads_before, "not finite"),
        (writes_behind, "around an output"),
        (changes_an_input, "elements differ"),
    ):
        with pytest.raises((AssertionError, RuntimeError), match=message):
            ladder.inside_its_buffers(op, ops.Candidate("cpp", ("cpu",), run), args)


def test_only_tensor_cores_have_their_allowance():
    pytest.importorskip("triton")
    names = {name for name, op in ops.OPS.items() if ladder.allowance(op, True) == numerics.TENSOR_CORE_SUM}
    assert names == {"gemm_dact_maskgrad", "gram_probe_grad", "hadamard_gram", "wgrad_group_scores"}
    assert {ladder.allowance(op, False) for op in ops.OPS.values()} == {numerics.RUNNING_SUM}
