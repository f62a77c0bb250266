"""The example in docs/howto/add-a-model.md works as it stands."""

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from pyprune.capture.masking import masked
from pyprune.core.errors import InputError
from pyprune.models.adapter import adapter_for
from pyprune.models.inputs import example_inputs
from pyprune.models.registry import FAMILIES
from pyprune.slicing.check import max_difference
from pyprune.slicing.slice import slice_
from pyprune.testing.models import random_plan
from pyprune.testing.zoo import decoders

PAGE = (Path(__file__).parents[2] / "docs/howto/add-a-model.md").read_text()
TABLE, ROW = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[-2:]


@pytest.fixture
def stablelm(monkeypatch):
    namespace = {}
    exec(TABLE, namespace)
    (family,) = namespace["FAMILIES"]
    assert "stablelm" not in FAMILIES, "the example is of a family that has no table yet"
    monkeypatch.setitem(FAMILIES._items, "stablelm", family)
    return family


def config(**options):
    tiny = eval("{" + ROW + "}", vars(decoders))["stablelm"]
    return AutoConfig.for_model(tiny.model_type, **tiny.config, **options)


@torch.no_grad()
def test_the_example_prunes_and_reloads(stablelm, tmp_path):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config(), dtype=torch.float64).eval()
    adapter = adapter_for(model)
    anatomy = adapter.anatomy(model)
    plan = random_plan(anatomy)
    inputs = {**example_inputs(model), "use_cache": False}
    with masked(model, anatomy, plan):
        expected = model(**inputs)
    sliced = slice_(model, adapter, plan)(**inputs)
    assert max_difference(expected, sliced) < 1e-12
    model.save_pretrained(tmp_path)
    assert max_difference(sliced, AutoModelForCausalLM.from_pretrained(tmp_path)(**inputs)) == 0


def test_the_example_refuses_what_its_table_does_not_describe(stablelm):
    model = AutoModelForCausalLM.from_config(config(qk_layernorm=True))
    with pytest.raises(InputError, match="qk_layernorm=True cannot be pruned: every head has a norm of its own"):
        adapter_for(model).anatomy(model)
