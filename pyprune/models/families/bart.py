"""BART and Whisper: an encoder and a decoder with one layout, the decoder also alone."""

from typing import Any

from pyprune.models.attention import Attention
from pyprune.models.depth import Depth
from pyprune.models.family import Family, Part, Stack
from pyprune.models.feed_forward import FeedForward
from pyprune.models.head_dims import head_dims


def source_tokens(config: Any, _: tuple[int, ...]) -> float | None:
    """A decoder alone is not given a source, unless its config says that another model will."""
    return None if config.is_encoder_decoder or getattr(config, "add_cross_attention", False) else 0


def _attention(module: str, cross: bool = False) -> Attention:
    # One config speaks for both stacks and for cross-attention too, so the widths are recorded under the groups' names.
    return Attention(
        module=module,
        query=f"{module}.q_proj",
        key=f"{module}.k_proj",
        value=f"{module}.v_proj",
        output=f"{module}.out_proj",
        counts=("num_heads",),
        cross=cross,
        exit=None,
    )


def _feed_forward(stack: str, *norm: str) -> FeedForward:
    entry = (*norm, "fc1", "activation_fn")
    return FeedForward(inner=("fc1",), output="fc2", entry=entry, exit=None, native_key=f"{stack}_ffn_dim")


def _audio_tokens(config: Any, _: tuple[int, ...]) -> float:
    return config.max_source_positions


def _source_audio_tokens(config: Any, indices: tuple[int, ...]) -> float:
    return config.max_source_positions if source_tokens(config, indices) is None else 0


def _with_head_dims(attention: Attention) -> tuple[Part, ...]:
    return attention, *head_dims(attention)


_SELF, _CROSS = _with_head_dims(_attention("self_attn")), _with_head_dims(_attention("encoder_attn", cross=True))
_ENCODER, _DECODER = Depth("encoder_layers"), Depth("decoder_layers")

FAMILIES = (
    Family(
        model_types=("bart",),
        stacks=(
            Stack("encoder.layers", (*_SELF, _feed_forward("encoder")), name="encoder", depth=_ENCODER),
            Stack(
                "decoder.layers",
                (*_SELF, *_CROSS, _feed_forward("decoder")),
                name="decoder",
                source_tokens=source_tokens,
                depth=_DECODER,
            ),
        ),
    ),
    Family(
        model_types=("whisper",),
        hidden=False,  # its table of sine waves is made for an even width
        stacks=(
            Stack(
                "encoder.layers",
                (*_SELF, _feed_forward("encoder", "final_layer_norm")),
                name="encoder",
                tokens=_audio_tokens,
                depth=_ENCODER,
            ),
            Stack(
                "decoder.layers",
                (*_SELF, *_CROSS, _feed_forward("decoder", "final_layer_norm")),
                name="decoder",
                source_tokens=_source_audio_tokens,
                depth=_DECODER,
            ),
        ),
    ),
)
