"""Decoders of text."""

from pyprune.testing.zoo.tiny import TOKENS, Tiny

_MHA = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 24, **TOKENS}
_GQA = {**_MHA, "num_key_value_heads": 2}
_WINDOW = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}
_HEADS = (
    "AutoModel",
    "AutoModelForCausalLM",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoModelForQuestionAnswering",
)
_BIASED = {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}

MODELS = {
    "llama": Tiny("llama", _GQA, _HEADS),
    "llama-mha": Tiny("llama", {**_GQA, "num_key_value_heads": 4}, _HEADS),
    "llama-biased": Tiny("llama", {**_GQA, **_BIASED}, _HEADS),
    "mistral": Tiny("mistral", {**_GQA, "sliding_window": 5}, _HEADS),
    "qwen2": Tiny("qwen2", {**_GQA, "tie_word_embeddings": True}, _HEADS),
    "qwen2-window": Tiny("qwen2", {**_GQA, **_WINDOW}, _HEADS),
    "qwen3": Tiny("qwen3", {**_GQA, "head_dim": 12}, _HEADS),
}
