"""VGG-style networks: channels through batch norm, pooling and flattening, neurons of the classifier, costs."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import pyprune
from pyprune.capture.masking import masked
from pyprune.core.errors import InputError
from pyprune.core.plan import Plan
from pyprune.core.scores import Scores
from pyprune.importance import CRITERIA
from pyprune.importance.registry import Evidence
from pyprune.models.adapter import adapter_for
from pyprune.slicing.check import max_difference


def vgg(*extra):
    torch.manual_seed(0)
    features = nn.Sequential(
        *(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.ReLU(), *extra, nn.AvgPool2d(2)),
    )
    classifier = nn.Sequential(nn.Linear(8 * 2 * 2, 10), nn.ReLU(), nn.Dropout(), nn.Linear(10, 4))
    model = nn.Sequential(features, nn.Flatten(), classifier).double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model


def images():
    return torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("extra", [(), (nn.Conv2d(8, 8, 3, groups=8, padding=1),)], ids=["plain", "depthwise"])
def test_masked_equals_sliced_equals_saved(extra):
    model = vgg(*copy.deepcopy(extra)).double()
    line = pyprune.discover(model, {"input": images()})
    assert line == "discovered: 2 x channels, 1 x neurons; proved on input [2, 3, 8, 8]"
    anatomy = adapter_for(model).anatomy(model)
    assert [(g.name, g.size, g.width) for g in anatomy.groups] == [
        *(("0.0.channels", 6, 1), ("0.4.channels", 8, 4), ("2.0.neurons", 10, 1))
    ]
    plan = Plan.keep_all(anatomy)
    plan.kept |= {"0.0.channels": torch.tensor([1, 4]), "0.4.channels": torch.tensor([0, 3, 7])}
    plan.kept["2.0.neurons"] = torch.tensor([2, 5])
    with masked(model, anatomy, plan):
        expected = model(images())
    small = pyprune.apply(model, plan)
    assert max_difference([expected], [small(images())]) < 1e-12
    assert max_difference([expected], [model(images())]) > 1e-3
    file = io.BytesIO()
    torch.save(small, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(images()), small(images()))
    assert weights(model) - weights(small) == anatomy.params() - anatomy.params(plan.counts)
    assert flops(model) - flops(small) == anatomy.flops(1) - anatomy.flops(1, plan.counts)


def test_a_budget_is_kept():
    model = vgg()
    pyprune.discover(model, {"input": images()})
    anatomy = adapter_for(model).anatomy(model)
    scores = Scores(CRITERIA["magnitude"].values(Evidence(model, anatomy, None)), {})
    plan = pyprune.plan(model, scores, {"flops": 0.5}, recipe="kwon", length=1)
    assert anatomy.flops(1, plan.counts) <= 0.5 * anatomy.flops(1)
    pyprune.apply(model, plan)(images())


def test_the_network_is_left_alone_while_it_is_looked_at():
    relu = nn.ReLU()
    layers = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), relu, nn.Conv2d(4, 4, 3), relu, nn.Conv2d(4, 2, 3))
    model = nn.Sequential(*layers).train()
    before = copy.deepcopy(model.state_dict())
    assert pyprune.discover(model, {"input": images().float()}).startswith("discovered: 2 x channels")
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_what_mixes_channels_stays():
    model = vgg(nn.GroupNorm(2, 8))
    assert pyprune.discover(model, {"input": images()}).startswith("discovered: 1 x channels, 1 x neurons")


def test_what_cannot_be_pruned_is_refused():
    with pytest.raises(InputError, match=r"Sequential: show it an input first: pyprune.discover\(model, \{\"input\""):
        adapter_for(vgg())
    with pytest.raises(InputError, match="no channels or neurons between two of its layers"):
        pyprune.discover(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), {"input": images().float()})
    with pytest.raises(InputError, match="cannot be run on these inputs"):
        pyprune.discover(vgg(), {"input": images()[:, :2]})
    model = vgg()
    pyprune.discover(model, {"input": images()})
    with pytest.raises(InputError, match="data goes through transformers models only; use plan and apply"):
        pyprune.prune(model, {"flops": 0.5})
    with pytest.raises(InputError, match=r"no config to load it from: save it whole, by torch\.save"):
        pyprune.save(model, "small")
    twice = nn.Conv2d(3, 3, 3, padding=1)
    with pytest.raises(InputError, match="2 is the same layer as 0"):
        pyprune.discover(nn.Sequential(twice, nn.ReLU(), twice), {"input": images().float()})


def weights(model):
    kinds = (nn.Conv2d, nn.Linear)
    return sum(m.weight.numel() for m in model.modules() if isinstance(m, kinds))


def flops(model):
    with FlopCounterMode(display=False) as counter:
        model(images()[:1])
    return counter.get_total_flops()
