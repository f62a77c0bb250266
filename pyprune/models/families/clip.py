"""CLIP's towers and those built like them: SigLIP's, and the image encoder of GIT."""

from typing import Any

from pyprune.models.attention import Attention
from pyprune.models.family import Family, Stack
from pyprune.models.feed_forward import FeedForward

# Heads have no key: the configs insist on a hidden size that is a multiple of their number, layer by layer as well.
LAYER = (
    Attention(
        module="self_attn",
        query="self_attn.q_proj",
        key="self_attn.k_proj",
        value="self_attn.v_proj",
        output="self_attn.out_proj",
        counts=("num_heads",),
    ),
    FeedForward(
        inner=("mlp.fc1",),
        output="mlp.fc2",
        entry=("layer_norm2", "mlp"),
        config_key="intermediate_size",
    ),
)


def patches(config: Any, _: tuple[int, ...] = ()) -> int:
    """Tokens of one image, a token for each square patch."""
    return (config.image_size // config.patch_size) ** 2


def patches_and_class(config: Any, _: tuple[int, ...] = ()) -> int:
    """Tokens of one image, a token for each square patch and one for the class."""
    return patches(config) + 1


FAMILIES = (
    Family(model_types=("clip_text_model", "siglip_text_model"), stacks=(Stack(layers="encoder.layers", parts=LAYER),)),
    Family(
        model_types=("clip_vision_model",),
        stacks=(Stack(layers="encoder.layers", parts=LAYER, tokens=patches_and_class),),
    ),
    # The attention that pools SigLIP's patches at the end has one query, and is no layer: it stays as it is.
    Family(
        model_types=("siglip_vision_model",),
        stacks=(Stack(layers="encoder.layers", parts=LAYER, tokens=patches),),
    ),
    Family(
        model_types=("git_vision_model",),
        stacks=(Stack(layers="vision_model.encoder.layers", parts=LAYER, tokens=patches_and_class),),
    ),
)
