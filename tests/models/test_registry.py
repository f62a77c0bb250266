import importlib
import pkgutil

import pytest
from transformers import AlbertConfig

import pyprune.models
from pyprune.core.errors import InputError
from pyprune.models.registry import FAMILIES, adapter_for
from pyprune.testing.models import VARIANTS, tiny_config

MODULES = [importlib.import_module(m.name) for m in pkgutil.iter_modules(pyprune.models.__path__, "pyprune.models.")]
FAMILY_MODULES = [m for m in MODULES if isinstance(vars(m).get("FAMILIES"), tuple)]


def test_every_family_file_is_registered_and_every_model_type_has_its_row_in_the_tests():
    types = {t for module in FAMILY_MODULES for family in module.FAMILIES for t in family.model_types}
    assert types == set(FAMILIES)
    assert types == {model_type for model_type, _ in VARIANTS.values()}
    assert all(model_type in VARIANTS for model_type in types)


def test_a_model_and_its_config_have_the_same_adapter():
    assert adapter_for(tiny_config("qwen3")) is adapter_for(tiny_config("llama"))


def test_an_unknown_model_type_is_answered_with_the_known_ones():
    with pytest.raises(
        InputError, match=r"unknown model type 'albert'; known: bert, distilbert, llama, mistral, qwen2"
    ):
        adapter_for(AlbertConfig())
    with pytest.raises(InputError, match="unknown model type 'dict'"):
        adapter_for({})
