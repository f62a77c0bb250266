"""How a pruned checkpoint becomes a pruned model again: transformers builds it dense, and it is cut before weights load.

The reasons for this door, and the measurements of the others, are in `docs/adr/0001-reload-door.md`.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import sys
import threading
from importlib.machinery import ModuleSpec
from typing import Any

import torch

from pyprune.core.errors import MismatchError

_MODELING = "transformers.modeling_utils"
_constructing = threading.local()


def install() -> None:
    """Let transformers rebuild pruned models, whether it is imported already or later.

    Importing transformers' modelling code takes seconds, so this only waits for somebody to do it. Models whose config has no
    per-layer widths pass through unchanged.
    """
    if _MODELING in sys.modules:
        _extend(sys.modules[_MODELING].PreTrainedModel)
    elif not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())


class _AfterImport:
    """Import finder that steps aside for `transformers.modeling_utils` and extends its base class once it has run."""

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
    if hasattr(base, "_pyprune_extended"):
        return
    base._pyprune_extended = True
    init, post_init = base.__init__, base.post_init

    @functools.wraps(init)
    def open_constructor(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        init(self, config, *args, **kwargs)
        if _is_pruned(config) and not config.allow_global_per_layer_attribute_access:
            # Layers read their widths from the global config, which transformers forbids while layers differ.
            config.allow_global_per_layer_attribute_access = _constructing.active = True

    @functools.wraps(post_init)
    def close_constructor(self: Any) -> None:
        if _is_pruned(self.config):
            shrink_(self)
            if getattr(_constructing, "active", False):
                del vars(self.config)["allow_global_per_layer_attribute_access"]
                _constructing.active = False
        post_init(self)

    base.__init__, base.post_init = open_constructor, close_constructor
    logging.getLogger("transformers.integrations.heterogeneity.configuration_utils").addFilter(_not_constructing)


def _not_constructing(record: logging.LogRecord) -> bool:
    """Drop the warning about global widths while dense layers are built that are cut a moment later."""
    return not getattr(_constructing, "active", False)


def _is_pruned(config: Any) -> bool:
    """Whether layers differ in widths that a pyprune family knows, and in nothing else."""
    if not getattr(config, "is_heterogeneous", False):
        return False
    from pyprune.models.registry import FAMILIES

    if config.model_type not in FAMILIES:
        return False
    family = FAMILIES[config.model_type]
    return config.per_layer_attributes <= {family.heads_key, family.neurons_key}


def shrink_(model: Any) -> None:
    """Cut a freshly built model to its config's per-layer widths; a no-op when it has them. MismatchError when it is smaller."""
    from pyprune.models.registry import adapter_for
    from pyprune.slicing.slice import cut_

    adapter = adapter_for(model)
    anatomy = adapter.anatomy(model)
    layers = model.config.per_layer_config
    kept = {}
    for group in anatomy.groups:
        wanted = getattr(layers[group.layer], adapter.config_key(group))
        if wanted > group.size:
            raise MismatchError(
                f"per_layer_config wants {wanted} units in {group.name}, the dense model has {group.size}"
            )
        kept[group.name] = torch.arange(wanted)
    cut_(model, adapter, anatomy, kept)
