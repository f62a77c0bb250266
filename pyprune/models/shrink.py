"""From the dense model that a config's global widths describe to the pruned one that its per-layer entries describe."""

from __future__ import annotations

from typing import Any

import torch

from pyprune.core.errors import MismatchError
from pyprune.models.registry import FAMILIES, adapter_for
from pyprune.slicing.slice import cut_


def is_pruned(config: Any) -> bool:
    """Whether layers differ in widths that a pyprune family knows, and in nothing else."""
    if not getattr(config, "is_heterogeneous", False) or config.model_type not in FAMILIES:
        return False
    family = FAMILIES[config.model_type]
    return config.per_layer_attributes <= {family.heads_key, family.neurons_key}


def shrink_(model: Any) -> bool:
    """Cut a freshly built model to its config's per-layer widths, in place; nothing happens when it has them already.

    Which units stay does not matter: the weights are loaded or initialised afterwards. Returns whether `model` holds
    the layers; a part of a model (a decoder inside its body) may not, and is left to the whole. MismatchError when the
    config asks for more units than the dense model has.
    """
    adapter = adapter_for(model)
    if adapter.layer_list(model) is None:
        return False
    anatomy = adapter.anatomy(model)
    layers = model.config.per_layer_config
    kept = {}
    for group in anatomy.groups:
        wanted = getattr(layers[group.layer], adapter.config_key(group))
        if wanted > group.size:
            raise MismatchError(f"per_layer_config: {group.name} has {group.size} units in the model, not {wanted}")
        kept[group.name] = torch.arange(wanted)
    cut_(model, adapter, anatomy, kept)
    return True
