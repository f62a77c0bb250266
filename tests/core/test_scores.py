"""Scores and the statistics behind them."""

import pytest
import torch

from pyprune.core.errors import InputError, NumericsError
from pyprune.core.scores import Scores
from pyprune.core.statistics import Statistics
from pyprune.core.storage import write_tensors
from pyprune.testing import numerics


def make(statistics=True):
    generator = torch.Generator().manual_seed(0)
    gradients = {"a": torch.randn(6, 4, generator=generator), "b": torch.randn(6, 0, generator=generator)}
    collected = Statistics(gradients, torch.tensor([3, 9, 5]), 2, {"cotangent": "sampled"})
    values = {"a": torch.rand(4, generator=generator, dtype=torch.float64), "b": torch.zeros(0)}
    return Scores(values, {"seed": 4}, collected if statistics else None)


def test_round_trip_with_statistics(tmp_path):
    scores = make()
    scores.save(tmp_path / "scores.safetensors")
    loaded = Scores.load(tmp_path / "scores.safetensors")
    assert loaded.values.keys() == scores.values.keys()
    for name in scores.values:
        numerics.exact(loaded.values[name], scores.values[name])
        numerics.exact(loaded.statistics.gradients[name], scores.statistics.gradients[name])
    numerics.exact(loaded.statistics.lengths, scores.statistics.lengths)
    assert (loaded.meta, loaded.statistics.meta) == ({"seed": 4}, {"cotangent": "sampled"})
    assert (loaded.statistics.draws, loaded.statistics.samples) == (2, 3)
    assert loaded.statistics.mean_length == 17 / 3


def test_round_trip_without_statistics(tmp_path):
    make(statistics=False).save(tmp_path / "scores.safetensors")
    assert Scores.load(tmp_path / "scores.safetensors").statistics is None


def test_values_are_float64_on_the_cpu_without_a_graph():
    scores = Scores({"a": torch.ones(3, requires_grad=True, dtype=torch.bfloat16)})
    numerics.exact(scores.values["a"], torch.ones(3, dtype=torch.float64))
    assert not scores.values["a"].requires_grad


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_overflow_is_named(bad):
    with pytest.raises(NumericsError, match=r"layers\.3\.heads"):
        Scores({"layers.2.heads": torch.ones(2), "layers.3.heads": torch.tensor([1.0, bad])})


def test_a_file_of_something_else_is_refused(tmp_path):
    write_tensors(tmp_path / "x", {"inputs/ids": torch.zeros(2)}, {})
    with pytest.raises(InputError, match="holds no scores"):
        Scores.load(tmp_path / "x")
