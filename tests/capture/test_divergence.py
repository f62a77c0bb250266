"""Divergence of predictions from a dense model's: written out for every kind of output, and where it is 0."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from pyprune.capture.divergence import Curvature, Divergence
from pyprune.capture.outputs import run
from pyprune.core.errors import InputError
from pyprune.testing import numerics
from pyprune.testing.models import tiny_model

T = 2.0


def kl(p, q):
    return (p * (p / q).log()).sum(-1)


def of_classes(says, dense):
    return kl((dense / T).softmax(-1), (says / T).softmax(-1)) * T**2


def of_labels(says, dense):
    p, q = (dense / T).sigmoid(), (says / T).sigmoid()
    return kl(torch.stack([p, 1 - p], -1), torch.stack([q, 1 - q], -1)).sum(-1) * T**2


def of_values(says, dense):
    return 0.5 * (says - dense).square().mean(-1)


def batch_of(lengths=(7, 4)):
    from pyprune.core.batches import Samples

    generator = torch.Generator().manual_seed(0)
    rows = [{"input_ids": torch.randint(3, 99, (n,), generator=generator)} for n in lengths]
    return Samples(rows).collate(range(len(rows)))


def outputs_of(variant, head, batch, **overrides):
    models = [tiny_model(variant, head, torch.float64, seed=seed, **overrides) for seed in (0, 1)]
    with torch.no_grad():
        return models[0], *(run(model, batch.inputs) for model in models)


@pytest.mark.parametrize(
    ("settings", "apart"),
    [
        ({"num_labels": 3}, of_classes),
        ({"num_labels": 3, "problem_type": "multi_label_classification"}, of_labels),
        ({"num_labels": 1}, of_values),
        ({"num_labels": 3, "problem_type": "regression"}, of_values),
    ],
)
def test_of_samples(settings, apart):
    batch = batch_of()
    model, dense, says = outputs_of("bert", "AutoModelForSequenceClassification", batch, **settings)
    divergence = Divergence(False, model.config, T)
    divergence.dense = divergence.said(dense, batch)
    numerics.ratio(divergence(says, batch), apart(says.logits, dense.logits).sum())
    assert float(divergence(dense, batch).abs()) < 1e-12


@pytest.mark.parametrize(
    ("variant", "head", "causal"),
    [("bert", "AutoModelForTokenClassification", False), ("llama", "AutoModelForCausalLM", True)],
)
def test_of_tokens_is_a_mean_over_real_ones(variant, head, causal):
    batch = batch_of()
    model, dense, says = outputs_of(variant, head, batch)
    divergence = Divergence(causal, model.config, T)
    divergence.dense = divergence.said(dense, batch)
    each = of_classes(says.logits, dense.logits)
    numerics.ratio(divergence(says, batch), each[0].mean() + each[1, :4].mean())


def test_of_spans_is_a_mean_over_both_ends_among_real_tokens():
    batch = batch_of()
    model, dense, says = outputs_of("bert", "AutoModelForQuestionAnswering", batch)
    divergence = Divergence(False, model.config, T)
    divergence.dense = divergence.said(dense, batch)
    ends = [(says.start_logits, dense.start_logits), (says.end_logits, dense.end_logits)]
    expected = sum(of_classes(a[0], b[0]) + of_classes(a[1, :4], b[1, :4]) for a, b in ends) / 2
    numerics.ratio(divergence(says, batch), expected, torch.float32)  # small differences of large terms


def test_of_embeddings_is_one_minus_their_cosine():
    batch = batch_of((6, 6))
    model, dense, says = outputs_of("bert", "AutoModel", batch)
    divergence = Divergence(False, model.config, T)
    divergence.dense = divergence.said(dense, batch)
    pooled = [outputs.last_hidden_state.mean(1) for outputs in (says, dense)]
    cosine = torch.nn.functional.cosine_similarity(*pooled)
    numerics.ratio(divergence(says, batch).double(), (1 - cosine).sum(), torch.float32)


DRAWS = 4096


@pytest.mark.parametrize(
    ("shape", "problem"),
    [
        ((4,), ""),
        ((3,), "multi_label_classification"),
        ((3,), "regression"),
        ((1,), ""),
        ((2, 3), ""),  # tokens
        ((2, 3), "span"),
    ],
)
def test_curvature_is_the_second_derivative_on_average(shape, problem):
    """Over as many samples of the same outputs, to six standard errors; gradients at outputs are the directions."""
    given = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    length = {"span": 3}.get(problem, shape[0] if len(shape) == 2 else 1)
    batch, one = batch_of((length,) * DRAWS), batch_of((length,))
    divergence = Divergence(False, SimpleNamespace(problem_type=problem), T)

    def outputs(s):
        return (
            SimpleNamespace(start_logits=s[:, 0], end_logits=s[:, 1])
            if problem == "span"
            else SimpleNamespace(logits=s)
        )

    def apart(s):
        divergence.dense = divergence.said(outputs(given[None]), one)
        return divergence(outputs(s[None]), one)

    expected = torch.autograd.functional.hessian(apart, given).reshape(given.numel(), given.numel())
    s = given.expand(DRAWS, *shape).clone().requires_grad_()
    Curvature(divergence, 0)(outputs(s), batch).backward()
    products = torch.einsum("ni,nj->nij", s.grad.flatten(1), s.grad.flatten(1))
    errors = products.std(0) / DRAWS**0.5 + torch.finfo(torch.float32).eps
    assert ((products.mean(0) - expected).abs() / errors).max() < 6


def test_directions_belong_to_samples():
    """Padding and the rest of the batch change nothing; another draw or seed does."""
    logits = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    divergence = Divergence(False, None, T)

    def direction(s, batch, seed=0, draw=0):
        s = s.clone().requires_grad_()
        Curvature(divergence, seed)(SimpleNamespace(logits=s), batch, draw).backward()
        return s.grad

    both, batch = direction(logits, batch_of((7, 4))), batch_of((7, 4))
    assert not both[1, 4:].any()
    alone = replace(batch_of((4,)), index=batch.index[1:])
    numerics.exact(direction(logits[1:, :4], alone)[0], both[1, :4])
    assert not torch.equal(direction(logits, batch, seed=1), both)
    assert not torch.equal(direction(logits, batch, draw=1), both)


def test_what_may_not_be_predicted_has_no_gradient():
    logits = torch.tensor([[0.5, -torch.inf, 1.0]], requires_grad=True)
    divergence = Divergence(False, None, T)
    divergence.dense = (torch.tensor([[1.0, -torch.inf, 0.0]]),)
    divergence(SimpleNamespace(logits=logits), batch_of((5,))).backward()
    assert logits.grad.isfinite().all()
    assert logits.grad[0, 1] == 0
    logits.grad = None
    Curvature(divergence, 0)(SimpleNamespace(logits=logits), batch_of((5,))).backward()
    assert logits.grad.isfinite().all()
    assert logits.grad[0, 1] == 0


def test_outputs_that_say_nothing_are_refused():
    with pytest.raises(InputError, match="a SimpleNamespace holds neither logits nor hidden states"):
        Divergence(False, None, T).said(SimpleNamespace(), batch_of())
