"""The model's config as one layer sees it, for layers that read the number of their heads from it at every call."""

from __future__ import annotations

from typing import Any

from torch import nn


class LayerConfig:
    """A config that gives some values of its own, and all others as the model's config has them at that moment.

    Not a copy: what is set on the model's config later, such as the attention implementation, is seen here too.
    """

    def __init__(self, config: Any) -> None:
        self._config = config

    def __getattr__(self, name: str) -> Any:
        # Only asked for what this object does not hold itself; before it holds anything while it is unpickled.
        if name == "_config":
            raise AttributeError(name)
        return getattr(self._config, name)


def remember_(module: nn.Module, name: str, value: int) -> None:
    """Set `name` of `module` to `value`; of what it reads from the config if `name` begins with `config.`."""
    leaf = name.removeprefix("config.")
    if leaf == name:
        setattr(module, name, value)
    elif getattr(module.config, leaf) != value:
        if not isinstance(module.config, LayerConfig):
            module.config = LayerConfig(module.config)
        setattr(module.config, leaf, value)
