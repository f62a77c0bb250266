"""How plain `from_pretrained` rebuilds a pruned model: transformers builds it dense, and it is cut before weights load.

The reasons for this door, and the measurements of the others, are in `docs/adr/0001-reload-door.md`.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import sys
import threading
import weakref
from importlib.machinery import ModuleSpec
from typing import Any

_MODELING = "transformers.modeling_utils"
_constructing = threading.local()


def install() -> None:
    """Let transformers rebuild pruned models, whether it is imported already or later.

    Importing transformers' modelling code takes seconds, so this only waits for somebody to do it. Models whose config
    has no per-layer widths pass through unchanged. May be called again.
    """
    if _MODELING in sys.modules:
        _extend(sys.modules[_MODELING].PreTrainedModel)
    elif not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())


class _AfterImport:
    """Import finder that lets `transformers.modeling_utils` be imported as ever, then extends its base class."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != _MODELING:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def execute_and_extend(module: Any) -> None:
            execute(module)
            _extend(module.PreTrainedModel)

        spec.loader.exec_module = execute_and_extend
        return spec


def _extend(base: type) -> None:
    """Wrap the two ends of every model's constructor: `PreTrainedModel.__init__` opens it, `post_init` closes it."""
    if hasattr(base.post_init, "cuts_pruned_models"):
        return
    init, post_init = base.__init__, base.post_init

    @functools.wraps(init)
    def open_constructor(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        init(self, config, *args, **kwargs)
        if _is_pruned(config) and not config.allow_global_per_layer_attribute_access:
            # Layers read their widths from the global config, which transformers forbids while layers differ.
            config.allow_global_per_layer_attribute_access = True
            _constructing.models = [weakref.ref(model) for model in (*_opened(), self)]

    @functools.wraps(post_init)
    def close_constructor(self: Any) -> None:
        if _is_pruned(self.config):
            from pyprune.models.shrink import shrink_

            if shrink_(self) and any(model.config is self.config for model in _opened()):
                del vars(self.config)["allow_global_per_layer_attribute_access"]
                still = (model for model in _opened() if model.config is not self.config)
                _constructing.models = [weakref.ref(model) for model in still]
        post_init(self)

    close_constructor.cuts_pruned_models = True
    base.__init__, base.post_init = open_constructor, close_constructor
    # The warning about reading a global width does not apply to layers that are cut a moment later.
    logger = logging.getLogger("transformers.integrations.heterogeneity.configuration_utils")
    logger.addFilter(lambda record: not _opened())


def _opened() -> list[Any]:
    """Models under construction in this thread by whose configs global widths may be read.

    Held weakly, and put down anew by whoever changes the list: a constructor that raises never closes what it opened.
    """
    return [model for ref in getattr(_constructing, "models", ()) if (model := ref()) is not None]


def _is_pruned(config: Any) -> bool:
    # Looked at for every model there is, so that the tables are not imported for one that is not pruned.
    if not (getattr(config, "is_heterogeneous", False) or {"pruned_groups", "pruned_tokens"} & vars(config).keys()):
        return False
    from pyprune.models.shrink import is_pruned_config

    return is_pruned_config(config)
