"""Dense and pruned models timed side by side, at lengths that the model takes."""

import copy

import pytest

from pyprune.bench.latency import latency
from pyprune.testing.models import tiny_model


@pytest.mark.parametrize(("variant", "longest"), [("bert", 40), ("roberta", 38), ("llama", 40)])
def test_a_case_longer_than_the_positions_is_cut(variant, longest):
    # RoBERTa's 40 positions begin behind its padding token 1.
    model = tiny_model(variant)
    found = latency(model, copy.deepcopy(model), batch=2, length=128, repeats=2)
    assert (found.batch, found.length) == (2, longest)
    assert found.dense_ms > 0
    assert found.ratio == found.dense_ms / found.pruned_ms
