"""Distances and divergences by hand and by their definitions, and answers of every kind."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from pyprune.capture.trajectory import (
    Answer,
    answer_of,
    divergence,
    first_later,
    gram_distance,
    information_probe,
    information_roots,
    points,
    unit_rows,
)
from pyprune.core.batches import Samples
from pyprune.core.errors import InputError
from pyprune.models.adapter import adapter_for
from pyprune.testing import numerics
from pyprune.testing.models import tiny_model


def make(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_distance_by_hand():
    """Two rows at right angles that come to lie on each other: M' - M is 1 in two places."""
    rows = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    assert float(gram_distance(rows, torch.tensor([[[0.0, 0.0], [1.0, -1.0]]]))) == 2.0


def test_distance_is_that_of_gram_matrices():
    before, after = unit_rows(make(3, 9, 5), None), unit_rows(make(3, 9, 5, seed=1), None)
    expected = (after @ after.mT - before @ before.mT).square().sum()
    numerics.ratio(gram_distance(before, after - before), expected)


def test_padding_has_no_rows():
    rows = unit_rows(torch.full((1, 3, 4), torch.nan), torch.tensor([[False, False, False]]))
    assert not rows.any()
    assert unit_rows(torch.ones(1, 2, 4, dtype=torch.bfloat16), None).dtype == torch.float32


KINDS = {
    "categorical": lambda v: torch.distributions.Categorical(logits=v),
    "bernoulli": lambda v: torch.distributions.Bernoulli(logits=v),
    "gaussian": lambda v: torch.distributions.Normal(v, 1.0),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1e-3, 0.3, 3.0])
def test_divergence(kind, size):
    values, change = make(6, 5), size * make(6, 5, seed=1)
    expected = torch.distributions.kl_divergence(KINDS[kind](values), KINDS[kind](values + change)).sum()
    torch.testing.assert_close(divergence(kind, values, change), expected, rtol=1e-12 + 1e-15 / size**2, atol=0)


def test_divergence_of_changes_below_rounding():
    """Half the variance of the change under the predictions: what float64 predictions alone could not tell."""
    values, change = make(1, 5), 1e-12 * make(1, 5, seed=1)
    p = values.softmax(-1)
    variance = (p * (change - (p * change).sum()).square()).sum()
    torch.testing.assert_close(divergence("categorical", values, change), variance / 2, rtol=1e-9, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_information_is_the_second_order_of_the_divergence(kind):
    answer = Answer(kind, make(4, 3), torch.arange(4))
    direction = 1e-5 * make(4, 3, seed=2)
    expected = divergence(kind, answer.values, direction)
    exact = sum((root * direction).sum(-1).square().sum() / 2 for root in information_roots(answer))
    torch.testing.assert_close(exact, expected, rtol=1e-3, atol=0)
    index = torch.arange(4)
    draws = torch.stack(
        [(information_probe(answer, index, 0, i) * direction).sum(-1).square().sum() / 2 for i in range(2000)]
    )
    assert abs(float(draws.mean() - expected)) < 4 * float(draws.std()) / len(draws) ** 0.5
    alone = information_probe(Answer(kind, answer.values[2:3], torch.zeros(1, dtype=torch.int64)), index[2:3], 0, 7)
    assert torch.equal(alone, information_probe(answer, index, 0, 7)[2:3])


def test_answers_of_every_kind():
    batch = Samples([{"input_ids": torch.tensor([5, 6, 7])}, {"input_ids": torch.tensor([5, 6])}]).collate([0, 1])
    logits = make(2, 3, 4)
    config = SimpleNamespace(problem_type=None)

    def kind(causal=False, problem=None, **outputs):
        return answer_of(SimpleNamespace(**outputs), batch, SimpleNamespace(problem_type=problem), causal)

    tokens = kind(logits=logits)
    assert torch.equal(tokens.values, torch.cat([logits[0], logits[1, :2]]))
    assert tokens.owner.tolist() == [0, 0, 0, 1, 1]
    causal = kind(causal=True, logits=logits)
    assert torch.equal(causal.values, torch.cat([logits[0, :2], logits[1, :1]]))
    assert causal.owner.tolist() == [0, 0, 1]
    assert kind(logits=logits[:, 0]).kind == "categorical"
    assert kind(logits=logits[:, 0], problem="multi_label_classification").kind == "bernoulli"
    assert (kind(logits=logits[:, 0, :1]).kind, kind(logits=logits[:, 0], problem="regression").kind) == (
        "gaussian",
        "gaussian",
    )
    spans = kind(start_logits=logits[..., 0], end_logits=logits[..., 1])
    assert spans.owner.tolist() == [0, 1, 0, 1]
    assert float(spans.values.softmax(-1)[1, 2]) == 0  # padding
    embedding = answer_of(SimpleNamespace(last_hidden_state=logits), batch, config, False)
    numerics.ratio(embedding.values[1], F.normalize(logits[1, :2].mean(0), dim=-1))
    assert embedding.kind == "gaussian"
    with pytest.raises(InputError, match="neither logits nor states"):
        answer_of(SimpleNamespace(), batch, config, False)


def test_which_layers_come_later():
    anatomy = adapter_for(model := tiny_model("bert")).anatomy(model)
    found = [first_later(anatomy, block) for block in anatomy.blocks]
    assert found == [min(i // 2 + 1, len(anatomy.layers) - 1) for i in range(len(anatomy.blocks))]
    assert [points(anatomy)[z].layer_path for z in range(len(anatomy.layers))] == list(anatomy.layers)
    # Of the last layer of an encoder its own counts too, and those of the decoder.
    anatomy = adapter_for(model := tiny_model("bart")).anatomy(model)
    encoder = [path for path in anatomy.layers if "encoder" in path and "decoder" not in path]
    last = next(block for block in anatomy.blocks if block.layer_path == encoder[-1])
    assert first_later(anatomy, last) == len(encoder) - 1
    assert len(points(anatomy)) == len(anatomy.layers)
