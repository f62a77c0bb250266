"""From a model to the adapter of its family."""

from __future__ import annotations

from typing import Any

from pyprune.core.registry import Registry
from pyprune.models import bert, llama
from pyprune.models.family import Family

FAMILIES: Registry[Family] = Registry("model type")

for _module in (bert, llama):
    for _family in _module.FAMILIES:
        FAMILIES.register(*_family.model_types)(_family)


def adapter_for(model_or_config: Any) -> Family:
    """The adapter of a transformers model or config; InputError lists the supported model types when it has none.

    >>> adapter_for(model).anatomy(model)
    """
    config = getattr(model_or_config, "config", model_or_config)
    return FAMILIES[getattr(config, "model_type", type(model_or_config).__name__)]
