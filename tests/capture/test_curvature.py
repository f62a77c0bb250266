"""Second-order statistics against autograd, one sample at a time."""

import torch
from torch.func import functional_call

from pyprune.capture.cotangent import EmbeddingProbe, NegativeLogLikelihood
from pyprune.capture.curvature import collect_curvature
from pyprune.core.batches import Batch, Samples
from pyprune.models.adapter import adapter_for
from pyprune.testing.models import tiny_model
from pyprune.testing.numerics import ratio

DRAWS = 2


def setting(variant="bert"):
    model = tiny_model(variant, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    rows = [{"input_ids": torch.randint(3, 99, (n,), generator=generator)} for n in (9, 4, 9, 6)]
    return model, adapter_for(model).anatomy(model), Samples(rows, None, {"input_ids": 1}), EmbeddingProbe(0)


def test_factors_are_sums_over_real_tokens_only():
    model, anatomy, samples, probe = setting()
    alone = collect_curvature(model, anatomy, samples.batches(), probe, DRAWS)
    padded = collect_curvature(model, anatomy, samples.batches(10**6, 1.0), probe, DRAWS)
    for name, curvature in alone.items():
        for factor in ("gram", "metric"):
            ratio(getattr(padded[name], factor), getattr(curvature, factor), torch.float32)


def test_factors_of_one_token_samples_give_the_exact_cost():
    """With one token a sample and one sample, the Kronecker form is the Gauss-Newton form."""
    model, anatomy, _, probe = setting()
    samples = Samples([{"input_ids": torch.tensor([5])}], None, {})
    block = anatomy.blocks[-1]
    curvature = collect_curvature(model, anatomy, samples.batches(), probe, 1)[block.units.name]
    name = f"{block.projection}.weight"
    weight = dict(model.named_parameters())[name].detach().clone().requires_grad_()
    batch = samples.collate([0])
    probe(functional_call(model, {name: weight}, (), batch.inputs), batch, 0).backward()
    d = torch.randn(weight.T.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    exact = (d * weight.grad.T).sum().square()
    ratio(torch.trace(d.T @ curvature.gram @ d @ curvature.metric), exact, torch.float32)


def test_the_model_is_left_as_it_was():
    model, anatomy, samples, probe = setting()
    model.train()
    collect_curvature(model, anatomy, samples.batches(), probe, 1)
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_tokens_that_nobody_reads_do_not_count():
    """A BERT classifier reads the first token of its last layer: the others have no gradient there."""
    model = tiny_model("bert", "AutoModelForSequenceClassification", dtype=torch.float64)
    anatomy = adapter_for(model).anatomy(model)
    _, _, samples, _ = setting()
    likelihood = NegativeLogLikelihood("sampled", False, model.config)
    last = anatomy.blocks[-1]
    found = collect_curvature(model, anatomy, samples.batches(), likelihood, DRAWS)[last.units.name]
    total, weights = torch.zeros_like(found.gram), 0.0
    for s in range(len(samples)):
        inputs = {"input_ids": samples.inputs[s]["input_ids"][None]}
        batch = Batch(inputs, torch.tensor([s]), torch.tensor([inputs["input_ids"].shape[1]]))
        seen = {}

        def keep(_, args, y, seen=seen):
            seen["x"] = args[0].detach()
            seen["y"] = y.requires_grad_() if not y.requires_grad else y
            y.retain_grad()

        handle = model.get_submodule(last.projection).register_forward_hook(keep)
        for draw in range(DRAWS):
            likelihood(model(**inputs), batch, draw).backward()
            weight = float(seen["y"].grad[0, 0].square().sum())
            total += weight * torch.outer(seen["x"][0, 0], seen["x"][0, 0])
            weights += weight
        handle.remove()
    ratio(found.gram, total / weights, torch.float32)
