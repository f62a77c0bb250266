from types import SimpleNamespace

import pytest
import torch

from pyprune.core.errors import InputError
from pyprune.models.inputs import example_inputs


class Model:
    def __init__(self, config):
        self.config = config

    def forward(self, input_ids, attention_mask):
        """What is read of a model is what its forward takes."""


def model(**options):
    return Model(SimpleNamespace(**{"vocab_size": 10, "pad_token_id": 3, "max_position_embeddings": 64, **options}))


def test_example_inputs_are_padded_more_from_row_to_row():
    inputs = example_inputs(model(), batch=3, length=12)
    assert inputs["attention_mask"].sum(1).tolist() == [12, 10, 8]
    ids, mask = inputs["input_ids"], inputs["attention_mask"].bool()
    assert (ids[~mask] == 3).all()
    assert (ids[mask] != 3).all()
    assert mask[:, 0].all()
    assert example_inputs(model(), padding="left")["attention_mask"][:, -1].all()


def test_example_inputs_use_the_whole_vocabulary_and_the_seed():
    ids = example_inputs(model(), batch=20, length=20)["input_ids"]
    assert set(ids.unique().tolist()) == set(range(10))
    assert torch.equal(ids, example_inputs(model(), batch=20, length=20)["input_ids"])
    assert not torch.equal(ids, example_inputs(model(), batch=20, length=20, seed=1)["input_ids"])


def test_example_inputs_fit_the_positions():
    assert example_inputs(model(max_position_embeddings=8), length=99)["input_ids"].shape == (2, 4)
    assert example_inputs(model(pad_token_id=None, max_position_embeddings=8), length=99)["input_ids"].shape == (2, 7)


def test_a_padding_token_beyond_the_positions_takes_none_of_them():
    inputs = example_inputs(model(vocab_size=200, pad_token_id=150, max_position_embeddings=64), length=12)
    assert inputs["input_ids"].shape == (2, 12)
    assert inputs["input_ids"][1, -1] == 150


def test_a_negative_padding_token_is_none():
    assert example_inputs(model(pad_token_id=-1), batch=4, length=12)["input_ids"].min() == 0


def test_a_forward_without_known_inputs_is_refused():
    class Strange(Model):
        def forward(self, waves, tides):
            pass

    with pytest.raises(InputError, match="Strange: give example inputs, its forward takes waves, tides"):
        example_inputs(Strange(SimpleNamespace()))
