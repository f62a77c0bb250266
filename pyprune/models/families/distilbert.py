"""DistilBERT: a post-norm encoder with names of its own."""

from pyprune.models.attention import Attention
from pyprune.models.depth import Depth
from pyprune.models.family import Family, Stack
from pyprune.models.feed_forward import FeedForward
from pyprune.models.head_dims import head_dims

_ATTENTION = Attention(
    module="attention",
    query="attention.q_lin",
    key="attention.k_lin",
    value="attention.v_lin",
    output="attention.out_lin",
    exit=("sa_layer_norm",),
    head_dim="attention_head_size",
    counts=("n_heads",),
    widths=("dim",),
    config_key="n_heads",
    derives_head_dim=True,
)

FAMILIES = (
    Family(
        model_types=("distilbert",),
        stacks=(
            Stack(
                layers="transformer.layer",
                depth=Depth("n_layers", counts=("transformer.n_layers",)),
                parts=(
                    _ATTENTION,
                    *head_dims(_ATTENTION),
                    FeedForward(
                        inner=("ffn.lin1",),
                        output="ffn.lin2",
                        entry=("ffn",),
                        exit=("output_layer_norm",),
                        config_key="hidden_dim",
                    ),
                ),
            ),
        ),
    ),
)
