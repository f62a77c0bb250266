import pytest
from transformers import AlbertConfig

from pyprune.core.errors import InputError
from pyprune.models.adapter import adapter_for
from pyprune.models.registry import FAMILIES
from pyprune.testing.models import tiny_config, tiny_model
from pyprune.testing.zoo import ZOO


def test_every_model_type_has_its_row_in_the_zoo():
    assert set(FAMILIES) == {tiny.model_type for tiny in ZOO.values() if tiny.model_type in FAMILIES}


def test_a_model_is_known_by_its_config():
    adapter_for(tiny_config("qwen3"))
    adapter_for(tiny_model("qwen3"))


def test_an_unknown_model_type_is_answered_with_the_known_ones():
    with pytest.raises(InputError, match=r"unknown model type 'albert'; known: .*bert, .*distilbert, .*llama, .*qwen2"):
        adapter_for(AlbertConfig())
    with pytest.raises(InputError, match="unknown model type 'dict'"):
        adapter_for({})
