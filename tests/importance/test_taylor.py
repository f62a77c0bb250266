"""Taylor scores against gradients that autograd makes of single weights."""

import pytest
import torch

from pyprune.capture.collect import collect
from pyprune.capture.cotangent import EmbeddingProbe
from pyprune.capture.weight_scores import collect_weight_scores
from pyprune.core.batches import Samples
from pyprune.core.errors import NumericsError
from pyprune.core.statistics import Statistics
from pyprune.importance import CRITERIA
from pyprune.importance.registry import Evidence
from pyprune.models.adapter import adapter_for
from pyprune.testing import numerics
from pyprune.testing.models import VARIANTS, tiny_model

LENGTHS = (7, 5, 7)


def samples_of():
    generator = torch.Generator().manual_seed(0)
    return Samples([{"input_ids": torch.randint(3, 99, (n,), generator=generator)} for n in LENGTHS])


def weight_cuts(group):
    return [cut for cut in group.cuts if cut.tensor.endswith("weight")]


def weight_gradients(model, anatomy, batch, cotangent):
    """Per-sample gradients `[B, out, in]` of every cut layer's weight, by one backward pass a sample."""
    paths = dict.fromkeys(cut.module for g in anatomy.groups for cut in weight_cuts(g))
    found = {path: [] for path in paths}
    for row in range(len(batch.index)):
        model.zero_grad()
        model.requires_grad_(True)
        outputs = model(**batch.inputs)
        # The probe of one sample alone: the loss is a sum over samples.
        hidden = outputs.last_hidden_state
        keep = torch.zeros(len(batch.index), 1, 1, dtype=hidden.dtype)
        keep[row] = 1
        outputs.last_hidden_state = hidden * keep + hidden.detach() * (1 - keep)
        cotangent(outputs, batch, 0).backward()
        for path in paths:
            found[path].append(model.get_submodule(path).weight.grad.clone())
    return {path: torch.stack(grads) for path, grads in found.items()}


def elements(weight, grads, mode):
    first, second = weight * grads.sum(0), weight.square() * grads.square().sum(0)
    return {"abs": first.abs(), "sq": second, "mix": (first - second / 2).abs()}[mode]


@pytest.mark.parametrize("mode", ["abs", "sq", "mix"])
@pytest.mark.parametrize("variant", ["bert", "llama", "qwen3"])
def test_sums_over_single_weights(variant, mode):
    model = tiny_model(variant, dtype=torch.float64)
    anatomy = adapter_for(model).anatomy(model)
    batches = samples_of().batches()
    found = collect_weight_scores(model, anatomy, batches, EmbeddingProbe(0), mode)
    expected = {g.name: torch.zeros(g.size, dtype=torch.float64) for g in anatomy.groups}
    for batch in batches:
        grads = weight_gradients(model, anatomy, batch, EmbeddingProbe(0))
        for g in anatomy.groups:
            for cut in weight_cuts(g):
                score = elements(model.get_submodule(cut.module).weight.detach(), grads[cut.module], mode)
                expected[g.name] += score.sum(1 - cut.dim).view(g.size, cut.width).sum(1)
    for name, value in expected.items():
        numerics.ratio(found[name], value)


@pytest.mark.parametrize("variant", VARIANTS)
def test_weight_scores_leave_no_gradients_and_no_hooks(variant):
    model = tiny_model(variant)
    anatomy = adapter_for(model).anatomy(model)
    found = collect_weight_scores(model, anatomy, samples_of().batches(), EmbeddingProbe(0), "sq", draws=2)
    assert all((v > 0).all() for v in found.values())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_taylor_is_the_sum_over_samples():
    g = torch.tensor([[1.0, 2.0], [2.0, -2.0], [-1.0, 3.0]])
    statistics = Statistics({"a": g}, torch.ones(3, dtype=torch.int64))
    found = CRITERIA["taylor"].values(Evidence(None, None, statistics))
    numerics.exact(found["a"], torch.tensor([2.0, 3.0], dtype=torch.float64))


def test_the_mask_gradient_is_the_sum_of_weights_times_gradients():
    """Euler's identity, which lets `taylor` do without weight gradients: down's columns and their mask agree."""
    model = tiny_model("llama", dtype=torch.float64)
    anatomy = adapter_for(model).anatomy(model)
    samples = samples_of()
    (batch, *_) = samples.batches()
    masks = collect(model, anatomy, [batch], EmbeddingProbe(0), samples.lengths).gradients
    grads = weight_gradients(model, anatomy, batch, EmbeddingProbe(0))
    for block in anatomy.blocks:
        weight = model.get_submodule(block.projection).weight.detach()
        columns = (weight * grads[block.projection]).sum(1)  # [B, channels]
        found = columns.view(len(batch.index), block.units.size, -1).sum(2)
        numerics.ratio(masks[block.units.name][batch.index].double(), found, torch.float32)


def test_gradients_that_overflow_are_named():
    model = tiny_model("bert")
    anatomy = adapter_for(model).anatomy(model)
    with torch.no_grad():
        model.get_submodule(anatomy.groups[0].cuts[0].module).weight[0, 0] = torch.inf
    with pytest.raises(NumericsError, match="hold NaN or Inf"):
        collect_weight_scores(model, anatomy, samples_of().batches(), EmbeddingProbe(0), "abs")
