import math
from types import SimpleNamespace

import pytest
import torch

from pyprune.core.errors import MismatchError
from pyprune.slicing.check import example_inputs, max_difference


def config(**options):
    return SimpleNamespace(**{"vocab_size": 10, "pad_token_id": 3, "max_position_embeddings": 64, **options})


def test_example_inputs_are_padded_more_from_row_to_row():
    inputs = example_inputs(config(), batch=3, length=12)
    assert inputs["attention_mask"].sum(1).tolist() == [12, 10, 8]
    ids, mask = inputs["input_ids"], inputs["attention_mask"].bool()
    assert (ids[~mask] == 3).all()
    assert (ids[mask] != 3).all()
    assert mask[:, 0].all()
    assert example_inputs(config(), padding="left")["attention_mask"][:, -1].all()


def test_example_inputs_use_the_whole_vocabulary_and_the_seed():
    ids = example_inputs(config(), batch=20, length=20)["input_ids"]
    assert set(ids.unique().tolist()) == set(range(10))
    assert torch.equal(ids, example_inputs(config(), batch=20, length=20)["input_ids"])
    assert not torch.equal(ids, example_inputs(config(), batch=20, length=20, seed=1)["input_ids"])


def test_example_inputs_fit_the_positions():
    assert example_inputs(config(max_position_embeddings=8), length=99)["input_ids"].shape == (2, 4)
    assert example_inputs(config(pad_token_id=None, max_position_embeddings=8), length=99)["input_ids"].shape == (2, 7)


def test_a_padding_token_beyond_the_positions_takes_none_of_them():
    inputs = example_inputs(config(vocab_size=200, pad_token_id=150, max_position_embeddings=64), length=12)
    assert inputs["input_ids"].shape == (2, 12)
    assert inputs["input_ids"][1, -1] == 150


def test_a_negative_padding_token_is_none():
    assert example_inputs(config(pad_token_id=-1), batch=4, length=12)["input_ids"].min() == 0


def test_max_difference_looks_into_every_tensor():
    first = {"a": torch.zeros(2), "b": (torch.zeros(3), [torch.zeros(1)])}
    second = {"a": torch.tensor([0.0, 0.5]), "b": (torch.zeros(3), [torch.tensor([-2.0])])}
    assert max_difference(first, first) == 0
    assert max_difference(first, second) == 2


def test_nan_agrees_with_nothing():
    nan = torch.tensor([0.0, math.nan])
    assert max_difference(nan, torch.zeros(2)) == math.inf
    assert max_difference(nan, nan) == math.inf


@pytest.mark.parametrize("other", [{"b": torch.zeros(2)}, {"a": torch.zeros(3)}, {}])
def test_outputs_of_other_shape_are_refused(other):
    with pytest.raises(MismatchError):
        max_difference({"a": torch.zeros(2)}, other)
