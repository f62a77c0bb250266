"""OLMo 2: decoders that normalise the output of each block, and queries and keys over all heads together.

Only neurons are pruned. The RMS norms of queries and keys take their statistics over the channels of all heads, so the
heads that stay read what the others hold: without them they compute something else, and no cut of the weights is
exact.
"""

from pyprune.models.depth import Depth
from pyprune.models.family import Family, Stack
from pyprune.models.feed_forward import FeedForward

FAMILIES = (
    Family(
        model_types=("olmo2",),
        stacks=(
            Stack(
                layers="layers",
                depth=Depth("num_hidden_layers"),
                parts=(
                    FeedForward(
                        inner=("mlp.gate_proj", "mlp.up_proj"),
                        output="mlp.down_proj",
                        entry=("mlp",),
                        exit=None,  # the output passes a norm before it is added
                        config_key="intermediate_size",
                    ),
                ),
            ),
        ),
    ),
)
