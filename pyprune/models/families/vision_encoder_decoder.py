"""An image encoder and a text decoder of any two families, whose tables describe them."""

from __future__ import annotations

from torch import nn

from pyprune.models.family import Family


def _source_tokens(model: nn.Module, prefix: str) -> float | None:
    """The decoder reads what the encoder's last layer puts out; None when no table describes the encoder."""
    from pyprune.models.registry import FAMILIES  # which reads this file

    model_type = model.encoder.config.model_type
    places = [place for place, _ in FAMILIES[model_type].parts(model.encoder)] if model_type in FAMILIES else []
    return places[-1].tokens if places else None


FAMILIES = (Family(model_types=("vision-encoder-decoder",), source_tokens=_source_tokens),)
