"""Inputs that any model can be tried with, made from what its forward takes and what its config says."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from pyprune.core.errors import InputError
from pyprune.models.discovered import PRUNED_FAMILY
from pyprune.models.widths import configs_below


@dataclass(frozen=True)
class _Wanted:
    batch: int
    length: int
    padding: Literal["right", "left"]
    generator: torch.Generator


# For families that take images of any size, and whose configs name none.
_IMAGE_SIZE = 224


def example_inputs(
    model: nn.Module, batch: int = 2, length: int = 12, seed: int = 0, padding: Literal["right", "left"] = "right"
) -> dict[str, torch.Tensor]:
    """Random inputs for `model.forward`, on the CPU: as many of those known here as it takes.

    - `input_ids`, `attention_mask` `[batch, length]` int64, each row with more padding than the last; row 0 is full,
      and padded positions hold the config's padding token. `length` is cut to what the positions allow. For an
      encoder-decoder each row ends in the config's end token, which is nowhere else;
    - `encoder_hidden_states` `[batch, length, hidden]` float32 and `encoder_attention_mask` `[batch, length]` int64,
      padded like the text, for a decoder with cross-attention;
    - `decoder_input_ids` `[batch, length]` int64, without padding;
    - `pixel_values` `[batch, channels, height, width]` float32;
    - `input_features` `[batch, mel bins, frames]` float32, as many frames as the encoder wants;
    - `flattened_patches` `[batch, length, 2 + patch values]` float32, with an `attention_mask` padded on the right.

    A model that discovery was shown inputs of gets random ones that look like those, whatever is asked for.

    InputError when the forward takes none of them.
    """
    if not hasattr(model, "config"):
        raise InputError(f"{type(model).__name__} has no config that tells what it takes")
    shown = vars(model.config).get(PRUNED_FAMILY, {}).get("inputs")
    if shown is not None:
        generator = torch.Generator().manual_seed(seed)
        return {name: _looking_like(look, generator) for name, look in shown.items()}
    wanted = _Wanted(batch, length, padding, torch.Generator().manual_seed(seed))
    taken = inspect.signature(model.forward).parameters
    inputs: dict[str, torch.Tensor] = {}
    for name, make in _MAKERS.items():
        if name in taken:
            made = make(model.config, wanted)
            inputs |= {key: tensor for key, tensor in made.items() if key in taken}
    if not inputs:
        raise InputError(
            f"{type(model).__name__}: give example inputs, pyprune.discover(model, inputs); "
            f"its forward takes {', '.join(taken)}"
        )
    return inputs


def look_of(inputs: Mapping[str, torch.Tensor]) -> dict[str, dict[str, Any]]:
    """Plain data from which random inputs can be made: shapes, and of whole numbers the smallest and the largest."""
    looks: dict[str, dict[str, Any]] = {}
    for name, tensor in inputs.items():
        whole = not tensor.is_floating_point()
        looks[name] = {"shape": list(tensor.shape), "range": [int(tensor.min()), int(tensor.max())] if whole else None}
    return looks


def _looking_like(look: Mapping[str, Any], generator: torch.Generator) -> torch.Tensor:
    if look["range"] is None:
        return torch.randn(look["shape"], generator=generator)
    low, high = look["range"]
    return torch.randint(low, high + 1, look["shape"], generator=generator)


def _tokens(config: Any, wanted: _Wanted) -> dict[str, torch.Tensor]:
    config = config_with(config, "vocab_size")
    length = wanted.length
    # Old configs say -1 for no padding token.
    vocabulary, pad = config.vocab_size, max(getattr(config, "pad_token_id", None) or 0, 0)
    positions = getattr(config, "max_position_embeddings", None) or 2 * length
    # Position tables may reserve the places up to a padding token among the first, so stay that far below their size.
    length = min(length, positions - pad - 1 if pad < positions // 2 else positions)
    # Encoder-decoders may classify a text at its only end token.
    end = getattr(config, "eos_token_id", None) if getattr(config, "is_encoder_decoder", False) else None
    reserved = sorted({pad} if end is None else {pad, end})
    ids = torch.randint(0, vocabulary - len(reserved), (wanted.batch, length), generator=wanted.generator)
    for token in reserved:
        ids = ids + (ids >= token)
    padded = torch.arange(wanted.batch)[:, None] * length // (2 * wanted.batch)
    position = torch.arange(length)
    mask = position < length - padded if wanted.padding == "right" else position >= padded
    if end is not None:
        ids[torch.arange(wanted.batch), (mask * position).argmax(1)] = end
    return {"input_ids": torch.where(mask, ids, pad), "attention_mask": mask.long()}


def _encoder_states(config: Any, wanted: _Wanted) -> dict[str, torch.Tensor]:
    width = getattr(config, "encoder_hidden_size", None)
    if width is None and getattr(config, "add_cross_attention", False):
        width = config.hidden_size
    if width is None:
        return {}
    states = torch.randn(wanted.batch, wanted.length, width, generator=wanted.generator)
    padded = torch.arange(wanted.batch)[:, None] * wanted.length // (2 * wanted.batch)
    mask = torch.arange(wanted.length) < wanted.length - padded
    return {"encoder_hidden_states": states, "encoder_attention_mask": mask.long()}


def _decoder_tokens(config: Any, wanted: _Wanted) -> dict[str, torch.Tensor]:
    config = config_with(getattr(config, "decoder", None) or config, "vocab_size")
    shape = (wanted.batch, min(wanted.length, getattr(config, "max_position_embeddings", None) or wanted.length))
    return {"decoder_input_ids": torch.randint(0, config.vocab_size, shape, generator=wanted.generator)}


def _pixels(config: Any, wanted: _Wanted) -> dict[str, torch.Tensor]:
    inside = [config, *(below for _, below in configs_below(config))]
    sized = [c for c in inside if getattr(c, "image_size", None) is not None]
    config = sized[0] if sized else config_with(config, "num_channels")
    size = getattr(config, "image_size", None) or _IMAGE_SIZE
    height, width = (size, size) if isinstance(size, int) else size
    shape: tuple[int, ...] = (getattr(config, "num_channels", 3), height, width)
    if getattr(config, "num_frames", None) and hasattr(config, "tubelet_size"):  # videos
        shape = (config.num_frames, *shape)
    shape = (wanted.batch, *shape)
    return {"pixel_values": torch.randn(shape, generator=wanted.generator)}


def _spectrogram(config: Any, wanted: _Wanted) -> dict[str, torch.Tensor]:
    config = config_with(config, "max_source_positions")
    shape = (wanted.batch, config.num_mel_bins, 2 * config.max_source_positions)
    return {"input_features": torch.randn(shape, generator=wanted.generator)}


def _patches(config: Any, wanted: _Wanted) -> dict[str, torch.Tensor]:
    config = config_with(config, "patch_embed_hidden_size")
    length = min(wanted.length, config.seq_len - 1)
    position = torch.arange(length)
    mask = position < length - torch.arange(wanted.batch)[:, None] * length // (2 * wanted.batch)
    values = torch.randn(wanted.batch, length, config.patch_embed_hidden_size, generator=wanted.generator)
    # A patch begins with its row and column, counted from 1; padding is all zero.
    places = torch.stack([position // 4 + 1, position % 4 + 1], dim=-1).expand(wanted.batch, -1, -1)
    return {"flattened_patches": torch.cat([places, values], dim=-1) * mask[..., None], "attention_mask": mask.long()}


_MAKERS: dict[str, Callable[[Any, _Wanted], dict[str, torch.Tensor]]] = {
    "input_ids": _tokens,
    "encoder_hidden_states": _encoder_states,
    "decoder_input_ids": _decoder_tokens,
    "pixel_values": _pixels,
    "input_features": _spectrogram,
    "flattened_patches": _patches,
}


def config_with(config: Any, attribute: str) -> Any:
    """`config`, or the first config inside it that has `attribute`."""
    for found in (config, *(below for _, below in configs_below(config))):
        if getattr(found, attribute, None) is not None:
            return found
    raise InputError(f"{type(config).__name__} has no {attribute}: give example inputs")
