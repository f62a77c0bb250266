"""Model types and the tables of their families."""

from __future__ import annotations

import importlib
import pkgutil

from pyprune.core.registry import Registry
from pyprune.models import families
from pyprune.models.family import Family

FAMILIES: Registry[Family] = Registry("model type")

for _file in pkgutil.iter_modules(families.__path__, f"{families.__name__}."):
    for _family in importlib.import_module(_file.name).FAMILIES:
        FAMILIES.register(*_family.model_types)(_family)
