"""ViT and its relatives: pre-norm encoders of image patches, whose number the image's size fixes."""

from collections.abc import Callable
from dataclasses import replace

from torch import nn

from pyprune.models.attention import Attention
from pyprune.models.depth import Depth
from pyprune.models.family import Family, Stack
from pyprune.models.feed_forward import FeedForward
from pyprune.models.head_dims import head_dims
from pyprune.models.tokens import Patches

_SPLIT = {
    "module": "attention",
    "query": "attention.q_proj",
    "key": "attention.k_proj",
    "value": "attention.v_proj",
    "output": "attention.o_proj",
}
_ATTENTION = Attention(**_SPLIT, counts=("num_attention_heads",), config_key="num_attention_heads")
_PARTS = (
    _ATTENTION,
    *head_dims(_ATTENTION),
    FeedForward(inner=("mlp.fc1",), output="mlp.fc2", entry=("layernorm_after", "mlp"), config_key="intermediate_size"),
)


def _has(name: str) -> Callable[[nn.Module], bool]:
    """Whether a layer holds a module called `name` (dots allowed): which of a family's options it was built with."""
    return lambda layer: any(name == found for found, _ in layer.named_modules())


# DINOv2 scales what it adds to the residual stream, so its blocks are not replayed one by one. Its config knows a ratio
# in place of a number of neurons. In transformers 5.17 other modules hold the weights.
_SCALED_ATTENTION = replace(_ATTENTION, exit=None, when=_has("attention.q_proj"))
_SCALED = (
    _SCALED_ATTENTION,
    *head_dims(_SCALED_ATTENTION),
    Attention(
        module="attention.attention",
        query="attention.attention.query",
        key="attention.attention.key",
        value="attention.attention.value",
        output="attention.output.dense",
        head_dim="attention_head_size",
        counts=("num_attention_heads",),
        widths=("all_head_size",),
        config_key="num_attention_heads",
        exit=None,
        when=_has("attention.attention"),
    ),
    FeedForward(inner=("mlp.fc1",), output="mlp.fc2", entry=("norm2", "mlp"), exit=None, when=_has("mlp.fc1")),
    FeedForward(
        inner=("mlp.gate_proj", "mlp.up_proj"),
        output="mlp.down_proj",
        entry=("norm2", "mlp"),
        exit=None,
        when=_has("mlp.gate_proj"),
    ),
    FeedForward(
        inner=("mlp.weights_in",),
        output="mlp.weights_out",
        entry=("norm2", "mlp"),
        exit=None,
        fused=True,
        when=_has("mlp.weights_in"),
    ),
)


# Decoders read as many tokens as the encoder puts out.
_WITHIN = ("vision-encoder-decoder",)
_CLASS_TOKEN = Patches(first=1, within=_WITHIN)
_CLASS_AND_DISTILLATION_TOKEN = Patches(first=2, within=_WITHIN)
_DEPTH = Depth("num_hidden_layers")

FAMILIES = (
    Family(
        model_types=("vit",),
        stacks=(Stack("layers", _PARTS, patches=_CLASS_TOKEN, depth=_DEPTH),),
    ),
    Family(
        model_types=("deit",),
        stacks=(Stack("layers", _PARTS, patches=_CLASS_AND_DISTILLATION_TOKEN, depth=_DEPTH),),
    ),
    Family(model_types=("dinov2",), stacks=(Stack("encoder.layer", _SCALED, patches=_CLASS_TOKEN),)),
)
