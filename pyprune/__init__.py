"""pyprune: structured pruning of Hugging Face transformers into smaller dense models that load and run faster."""

from __future__ import annotations

import importlib
from typing import Any

from pyprune.models.patching import install

__version__ = "0.1.0"

# Where the public names live: they are imported when they are first used, since their modules take seconds to import.
_HOMES = {
    "pyprune.api": ("Result", "apply", "discover", "export", "plan", "prune", "save", "score", "tune"),
    "pyprune.capture.cotangent": ("UserLoss",),
    "pyprune.core.budget": ("Budget",),
    "pyprune.core.errors": (
        "BackendError",
        "BudgetError",
        "InputError",
        "MismatchError",
        "NumericsError",
        "PyPruneError",
    ),
    "pyprune.core.plan": ("Plan",),
    "pyprune.core.scores": ("Scores",),
    "pyprune.data.vocabulary": ("cut_tokenizer",),
    "pyprune.models.loading": ("load",),
    "pyprune.recipes": ("Flap", "KPrune", "Kwon", "LFPR", "LLMPruner", "OPTIN", "Surgeon"),
    "pyprune.retraining": ("retrain",),
    "pyprune.verification": ("verify_checkpoint", "verify_model"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)

install()


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'pyprune' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
