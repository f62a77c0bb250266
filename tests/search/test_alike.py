"""Uniform plans: groups of a kind merged into one cost and are worth what they do in sum."""

import pytest
import torch

from pyprune.core.scores import Scores
from pyprune.core.units import group_kind
from pyprune.models.adapter import adapter_for
from pyprune.search import search
from pyprune.search.alike import Alike
from pyprune.testing.models import tiny_model


@pytest.mark.parametrize("variant", ["bert", "mixtral", "deberta-v2"])
def test_merged_groups_cost_what_their_members_do(variant):
    """Also experts and the neurons inside them, and relative positions."""
    model = tiny_model(variant)
    anatomy = adapter_for(model).anatomy(model)
    scores = Scores({g.name: torch.rand(g.size) for g in anatomy.groups})
    alike = Alike(scores, anatomy)
    for share in (1.0, 0.5):
        merged = {g.name: round(share * g.size) for g in alike.anatomy.groups}
        counts = {g.name: merged[group_kind(g)] for g in anatomy.groups}
        assert alike.anatomy.params(merged) == anatomy.params(counts)
        assert alike.anatomy.flops(7.0, merged) == pytest.approx(anatomy.flops(7.0, counts), rel=1e-12)
    plan = search(scores, anatomy, {"flops": 0.6}, 7.0, uniform=True)
    assert 0.3 < plan.cost(anatomy, "flops") / anatomy.flops(7.0) <= 0.6
