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

    with pytest.raises(
        InputError, match=r"Strange: give example inputs, pyprune.discover.*; its forward takes waves, tides"
    ):
        example_inputs(Strange(SimpleNamespace()))


def test_a_text_for_an_encoder_decoder_ends_in_its_only_end_token():
    inputs = example_inputs(model(is_encoder_decoder=True, eos_token_id=5), batch=3, length=12)
    assert (inputs["input_ids"] == 5).nonzero().tolist() == [[0, 11], [1, 9], [2, 7]]
    left = example_inputs(model(is_encoder_decoder=True, eos_token_id=5), batch=3, length=12, padding="left")
    assert (left["input_ids"] == 5).nonzero().tolist() == [[0, 11], [1, 11], [2, 11]]


def test_sound_and_patches_have_the_shapes_that_the_config_wants():
    class Hearing(Model):
        def forward(self, input_features):
            pass

    config = SimpleNamespace(max_source_positions=7, num_mel_bins=3)
    assert example_inputs(Hearing(config))["input_features"].shape == (2, 3, 14)

    class Reading(Model):
        def forward(self, flattened_patches, attention_mask, decoder_input_ids):
            pass

    inputs = example_inputs(Reading(SimpleNamespace(patch_embed_hidden_size=3, seq_len=40, vocab_size=9)), length=8)
    patches, mask = inputs["flattened_patches"], inputs["attention_mask"]
    assert patches.shape == (2, 8, 5)
    assert patches[0, :, :2].tolist() == [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [2, 3], [2, 4]]
    assert mask.sum(1).tolist() == [8, 6]
    assert torch.equal(patches.sum(-1) != 0, mask.bool())
    assert inputs["decoder_input_ids"].shape == (2, 8)
