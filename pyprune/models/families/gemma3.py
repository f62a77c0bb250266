"""Gemma 3: decoders of text with a norm before and after each block; the text half of the multimodal models too."""

from dataclasses import replace

from pyprune.models.depth import Depth
from pyprune.models.families.llama import GATED_FEED_FORWARD, GROUPED_ATTENTION, HEAD_DIMS
from pyprune.models.family import Family, Stack

FAMILIES = (
    Family(
        model_types=("gemma3_text",),
        stacks=(
            Stack(
                layers="layers",
                depth=Depth("num_hidden_layers"),
                parts=(
                    # Outputs pass a norm before they are added.
                    replace(GROUPED_ATTENTION, exit=None),
                    *HEAD_DIMS,
                    replace(GATED_FEED_FORWARD, entry=("pre_feedforward_layernorm", "mlp"), exit=None),
                ),
            ),
        ),
    ),
)
