"""Tiny random models of every supported family: the real modelling code, with forwards of a few milliseconds."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pyprune.core.anatomy import Anatomy
from pyprune.core.plan import Plan

_TOKENS = {"vocab_size": 99, "max_position_embeddings": 40, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
_BERT = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 24, **_TOKENS}
_LLAMA = {**_BERT, "num_key_value_heads": 2}

# Variant -> (model type, config). A variant is named after its family, or says how it differs from it.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert", _BERT),
    "bert-decoder": ("bert", {**_BERT, "is_decoder": True}),
    "roberta": ("roberta", _BERT),
    "distilbert": ("distilbert", {"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 24, **_TOKENS}),
    "llama": ("llama", _LLAMA),
    "llama-mha": ("llama", {**_LLAMA, "num_key_value_heads": 4}),
    "llama-biased": ("llama", {**_LLAMA, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "mistral": ("mistral", {**_LLAMA, "sliding_window": 5}),
    "qwen2": ("qwen2", {**_LLAMA, "tie_word_embeddings": True}),
    "qwen2-window": ("qwen2", {**_LLAMA, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "qwen3": ("qwen3", {**_LLAMA, "head_dim": 12}),
}

_ENCODER_HEADS = (
    "AutoModel",
    "AutoModelForMaskedLM",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoModelForQuestionAnswering",
)
_DECODER_HEADS = (
    "AutoModel",
    "AutoModelForCausalLM",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoModelForQuestionAnswering",
)


def heads(variant: str) -> tuple[str, ...]:
    """Names of transformers' auto classes that a variant can be built as."""
    model_type, config = VARIANTS[variant]
    if config.get("is_decoder"):
        return ("AutoModel", "AutoModelForCausalLM")
    return _ENCODER_HEADS if model_type.endswith("bert") or model_type == "roberta" else _DECODER_HEADS


def tiny_config(variant: str, **overrides: Any) -> Any:
    """The transformers config of a variant."""
    from transformers import AutoConfig

    model_type, config = VARIANTS[variant]
    return AutoConfig.for_model(model_type, **{**config, **overrides})


def tiny_model(
    variant: str,
    head: str = "AutoModel",
    dtype: torch.dtype = torch.float32,
    attention: str = "sdpa",
    seed: int = 0,
    **overrides: Any,
) -> nn.Module:
    """A random model in eval mode; biases and norms are random too, so that a wrongly cut one changes the output."""
    import transformers

    torch.manual_seed(seed)
    auto_class = getattr(transformers, head)
    model = auto_class.from_config(tiny_config(variant, **overrides), attn_implementation=attention, dtype=dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
            parameter.copy_(centre + 0.3 * torch.randn(parameter.shape))
    return model.eval()


def random_plan(anatomy: Anatomy, seed: int = 0, emptied: bool = True) -> Plan:
    """Keep a random part of every group; with `emptied` the first attention and the second feed-forward lose all."""
    generator = torch.Generator().manual_seed(seed)
    plan = Plan.keep_all(anatomy)
    for i, g in enumerate(anatomy.groups):
        count = int(torch.randint(1, g.size + 1, (1,), generator=generator)) if g.size else 0
        if emptied and i in (0, 3):
            count = 0
        plan.kept[g.name] = torch.randperm(g.size, generator=generator)[:count].sort().values
    return plan
