"""Pix2Struct: a vision encoder, and a text decoder like that of T5."""

from pyprune.models.attention import Attention
from pyprune.models.depth import Depth
from pyprune.models.families.bart import source_tokens
from pyprune.models.families.t5 import SharedBias, with_head_dims
from pyprune.models.family import Family, Stack
from pyprune.models.feed_forward import FeedForward
from pyprune.models.head_dims import head_dims


def _text_attention(layer: str, cross: bool = False) -> SharedBias:
    # The config has one head count for self- and cross-attention, so the widths are recorded under the groups' names.
    module = f"{layer}.attention"
    return SharedBias(
        module=module,
        query=f"{module}.query",
        key=f"{module}.key",
        value=f"{module}.value",
        output=f"{module}.output",
        head_dim="key_value_proj_dim",
        counts=("n_heads",),
        widths=("inner_dim",),
        cross=cross,
        exit=None,
    )


_VISION_ATTENTION = Attention(
    module="attention",
    query="attention.query",
    key="attention.key",
    value="attention.value",
    output="attention.output",
    head_dim="key_value_proj_dim",
    counts=("n_heads",),
    widths=("inner_dim",),
    config_key="num_attention_heads",
    exit=None,
)

FAMILIES = (
    Family(
        model_types=("pix2struct_vision_model",),
        stacks=(
            Stack(
                layers="encoder.layer",
                depth=Depth("num_hidden_layers"),
                parts=(
                    _VISION_ATTENTION,
                    *head_dims(_VISION_ATTENTION),
                    FeedForward(
                        inner=("mlp.wi_0", "mlp.wi_1"),
                        output="mlp.wo",
                        entry=("pre_mlp_layer_norm", "mlp"),
                        config_key="d_ff",
                        exit=None,
                    ),
                ),
            ),
        ),
    ),
    Family(
        model_types=("pix2struct_text_model",),
        stacks=(
            Stack(
                layers="layer",
                depth=Depth("num_layers", first=1),
                parts=(
                    *with_head_dims(_text_attention("self_attention")),
                    *with_head_dims(_text_attention("encoder_decoder_attention", cross=True)),
                    FeedForward(
                        inner=("mlp.DenseReluDense.wi_0", "mlp.DenseReluDense.wi_1"),
                        output="mlp.DenseReluDense.wo",
                        entry=("mlp.layer_norm", "mlp.DenseReluDense"),
                        exit=None,
                        native_key="d_ff",
                    ),
                ),
                source_tokens=source_tokens,
            ),
        ),
    ),
)
