"""What a model puts out, whatever its class calls it: logits, or else states that make up an embedding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from pyprune.core.batches import Batch

# Of text and images in general, of whether an image and a text match, and of the queries of universal segmentation.
_LOGITS = ("logits", "itm_score", "class_queries_logits")
# Of backbones the last feature map; of models that restore images, those.
_STATES = ("last_hidden_state", "transformer_decoder_last_hidden_state", "feature_maps", "reconstruction")
_EMBEDDINGS = ("text_embeds", "image_embeds")


@contextmanager
def repeatable() -> Iterator[None]:
    """What a forward pass draws in evaluation mode, such as an order of patches, it draws alike each time."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        yield


def body(model: nn.Module) -> nn.Module:
    """What runs all blocks on the model's own inputs: no task head, whose logits over a vocabulary take gigabytes.

    Encoder-decoders as they are: it is the whole that makes what its decoder reads.
    """
    whole = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    return model if whole else getattr(model, "base_model", model)


def run(model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> Any:
    """The output of `model`, or of its decoder where the model keeps that one's logits to itself."""
    decoder = model.get_decoder() if "decoder_input_ids" in inputs and hasattr(model, "get_decoder") else model
    decoded: list[Any] = []
    handle = decoder.register_forward_hook(lambda _, __, output: decoded.append(output))
    try:
        with nullcontext() if model.training else repeatable():
            outputs = model(**inputs)
    finally:
        handle.remove()
    if logits_of(outputs) is None and decoded and logits_of(decoded[-1]) is not None:
        return decoded[-1]
    return outputs


def logits_of(outputs: Any) -> torch.Tensor | None:
    """Logits `[B, C]` of a sample or `[B, T, C]` of its tokens, a map `[B, C, H, W]` being H * W of these; or None."""
    for name in _LOGITS:
        found = getattr(outputs, name, None)
        if isinstance(found, torch.Tensor):
            return _rows(found)
    return None


def states_of(outputs: Any) -> torch.Tensor | None:
    """Hidden states `[B, T, d]`, a feature map `[B, d, H, W]` being H * W of these; or None."""
    for name in _STATES:
        found = getattr(outputs, name, None)
        if isinstance(found, tuple) and found:
            found = found[-1]
        if isinstance(found, torch.Tensor):
            return _rows(found)
    return None


def embedding_of(outputs: Any, batch: Batch) -> torch.Tensor | None:
    """What represents a sample, `[B, d]` fp32 (float64 of such) of L2 norm 1; None where there is nothing that could.

    The embeddings of its text and its image (both, each of the same norm), or else the mean over its real tokens.
    """
    found = [getattr(outputs, name, None) for name in _EMBEDDINGS]
    pooled = [F.normalize(wide(t), dim=-1) for t in found if isinstance(t, torch.Tensor) and t.dim() == 2]
    if pooled:
        return F.normalize(torch.cat(pooled, -1), dim=-1)
    states = states_of(outputs)
    return None if states is None else pooled_embedding(states, batch)


def pooled_embedding(hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Mean over real tokens, then L2 norm 1: `[B, T, d]` to `[B, d]` (what sentence encoders are used for)."""
    hidden = wide(hidden)
    weight = batch.mask(hidden.shape[1]).to(hidden.device)[..., None].to(hidden.dtype)
    return F.normalize((hidden * weight).sum(1) / weight.sum(1), dim=-1)


def wide(t: torch.Tensor) -> torch.Tensor:
    """`t` in fp32, or as it is in float64."""
    return t if t.dtype == torch.float64 else t.float()


def _rows(found: torch.Tensor) -> torch.Tensor:
    return found.flatten(2).transpose(1, 2) if found.dim() == 4 else found
