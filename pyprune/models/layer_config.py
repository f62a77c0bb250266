"""The model's config as one layer sees it, for layers that ask it at every call for what differs between layers."""

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
        override_(module, leaf, value)


def override_(module: nn.Module, name: str, value: Any) -> None:
    """Let `module` read `value` as `name` of its config, whatever the model's config says."""
    if not isinstance(module.config, LayerConfig):
        module.config = LayerConfig(module.config)
    setattr(module.config, name, value)


def follow_(module: nn.Module, name: str) -> None:
    """Let `module` read `name` from the model's config again."""
    if isinstance(module.config, LayerConfig):
        vars(module.config).pop(name, None)
