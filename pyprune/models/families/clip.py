"""CLIP's towers and those built like them: SigLIP's, and the image encoder of GIT."""

from pyprune.models.attention import Attention
from pyprune.models.depth import Depth
from pyprune.models.family import Family, Stack
from pyprune.models.feed_forward import FeedForward
from pyprune.models.head_dims import head_dims
from pyprune.models.tokens import Patches

# Heads have no key: the configs insist on a hidden size that is a multiple of their number, layer by layer as well.
_ATTENTION = Attention(
    module="self_attn",
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    value="self_attn.v_proj",
    output="self_attn.out_proj",
    counts=("num_heads",),
)
_LAYER = (
    _ATTENTION,
    *head_dims(_ATTENTION),
    FeedForward(
        inner=("mlp.fc1",),
        output="mlp.fc2",
        entry=("layer_norm2", "mlp"),
        config_key="intermediate_size",
    ),
)


_DEPTH = Depth("num_hidden_layers")

_TEXT = Stack(layers="encoder.layers", parts=_LAYER, depth=_DEPTH)

FAMILIES = (
    # Where its config has the old end token, 2, it takes the highest number in a text for the end.
    Family(model_types=("clip_text_model",), stacks=(_TEXT,), vocabulary=False),
    Family(model_types=("siglip_text_model",), stacks=(_TEXT,)),
    Family(
        model_types=("clip_vision_model",),
        stacks=(Stack("encoder.layers", _LAYER, patches=Patches(first=1, within=("clip",)), depth=_DEPTH),),
    ),
    # The attention that pools SigLIP's patches at the end has one query, and is no layer: it stays as it is. It takes
    # any number of them.
    Family(
        model_types=("siglip_vision_model",),
        stacks=(Stack("encoder.layers", _LAYER, patches=Patches(within=("siglip",)), depth=_DEPTH),),
    ),
    Family(
        model_types=("git_vision_model",),
        stacks=(
            Stack(
                layers="vision_model.encoder.layers",
                parts=_LAYER,
                # Not within GIT, whose text model reckons with all tokens of an image.
                patches=Patches(first=1, embeddings="vision_model.embeddings"),
                depth=_DEPTH,
            ),
        ),
    ),
)
