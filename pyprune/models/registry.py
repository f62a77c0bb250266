"""Model types and the tables of their families."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from pyprune.core.registry import Registry
from pyprune.models import families
from pyprune.models.discovered import PRUNED_FAMILY, family_from
from pyprune.models.family import Family

FAMILIES: Registry[Family] = Registry("model type")

for _file in pkgutil.iter_modules(families.__path__, f"{families.__name__}."):
    for _family in importlib.import_module(_file.name).FAMILIES:
        FAMILIES.register(*_family.model_types)(_family)


def family_of(config: Any) -> Family | None:
    """The table of the type of `config`, else the one that discovery noted in it, else None."""
    model_type = getattr(config, "model_type", "")
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    noted = getattr(config, "__dict__", {}).get(PRUNED_FAMILY)
    return None if noted is None else family_from(model_type, noted)
