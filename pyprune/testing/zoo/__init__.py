"""Every supported family as a tiny random model: a config of a few kilobytes, the real modelling code.

A file for each kind of family, with a dict `MODELS`. A model is named after its model type, or says how it differs
from it: one for each option of a family that changes what is cut.
"""

from __future__ import annotations

import importlib
import pkgutil

from pyprune.testing.zoo.tiny import Tiny

ZOO: dict[str, Tiny] = {}
for _file in pkgutil.iter_modules(__path__, f"{__name__}."):
    ZOO |= getattr(importlib.import_module(_file.name), "MODELS", {})
