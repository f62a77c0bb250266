"""OLMo 2: decoders that normalise the output of each block, and queries and keys over all heads together.

Heads are no units. The RMS norms of queries and keys take their statistics over the channels of all heads, so the heads
that stay read what the others hold: without them they compute something else, and no cut of the weights is exact.
Dimensions of all heads go as the norms of other families lose them: what is left is normalised by its own statistics.
"""

from dataclasses import replace

from pyprune.models.depth import Depth
from pyprune.models.families.llama import GROUPED_ATTENTION
from pyprune.models.family import Family, Stack
from pyprune.models.feed_forward import FeedForward
from pyprune.models.head_dims import head_dims

FAMILIES = (
    Family(
        model_types=("olmo2",),
        stacks=(
            Stack(
                layers="layers",
                depth=Depth("num_hidden_layers"),
                parts=(
                    *head_dims(replace(GROUPED_ATTENTION, exit=None), rotary=True, alone=True),
                    FeedForward(
                        inner=("mlp.gate_proj", "mlp.up_proj"),
                        output="mlp.down_proj",
                        entry=("mlp",),
                        exit=None,  # the output passes a norm before it is added
                        counts=("mlp.intermediate_size",),
                        config_key="intermediate_size",
                    ),
                ),
            ),
        ),
    ),
)
