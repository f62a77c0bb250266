"""Decoders of text."""

from pyprune.testing.zoo.tiny import TOKENS, Tiny

_SPECIAL = {name: TOKENS[name] for name in ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id")}
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
_GPT2 = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_inner": 24, "n_positions": 40, **_SPECIAL}
_OPT = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "ffn_dim": 24, **TOKENS}
_OPT_HEADS = (*_HEADS[:3], "AutoModelForQuestionAnswering")
_GEMMA3 = {**_GQA, "head_dim": 12, "sliding_window": 5, "query_pre_attn_scalar": 12}
# transformers 5.17 cannot save experts of a single neuron, which random plans of some widths leave.
_MIXTRAL = {**_GQA, "intermediate_size": 28}
_MOE = {**_GQA, "head_dim": 12, "num_experts": 5, "num_experts_per_tok": 3, "moe_intermediate_size": 20}
_GEMMA3_LAYERS = ["sliding_attention", "full_attention", "sliding_attention"]

MODELS = {
    "llama": Tiny("llama", _GQA, _HEADS),
    "llama-mha": Tiny("llama", {**_GQA, "num_key_value_heads": 4}, _HEADS),
    "llama-biased": Tiny("llama", {**_GQA, **_BIASED}, _HEADS),
    "mistral": Tiny("mistral", {**_GQA, "sliding_window": 5}, _HEADS),
    "qwen2": Tiny("qwen2", {**_GQA, "tie_word_embeddings": True}, _HEADS),
    "qwen2-window": Tiny("qwen2", {**_GQA, **_WINDOW}, _HEADS),
    "qwen3": Tiny("qwen3", {**_GQA, "head_dim": 12}, _HEADS),
    "smollm3": Tiny("smollm3", {**_GQA, **_BIASED, "no_rope_layer_interval": 2}, _HEADS),
    "smollm3-window": Tiny(
        "smollm3", {**_GQA, "use_sliding_window": True, "sliding_window": 5, "no_rope_layers": [1, 0, 1]}
    ),
    "gpt2": Tiny("gpt2", _GPT2, _HEADS),
    "gpt2-default-width": Tiny("gpt2", {**_GPT2, "n_inner": None, "scale_attn_by_inverse_layer_idx": True}),
    "gpt2-cross": Tiny("gpt2", {**_GPT2, "add_cross_attention": True}, _HEADS[:2]),
    "opt": Tiny("opt", _OPT, _OPT_HEADS),
    "opt-post-norm": Tiny("opt", {**_OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 16}, _HEADS[:2]),
    "opt-unbiased": Tiny("opt", {**_OPT, "enable_bias": False, "layer_norm_elementwise_affine": False}),
    "gpt_neox": Tiny("gpt_neox", _MHA, _HEADS),
    "gpt_neox-sequential": Tiny(
        "gpt_neox",
        {
            **_MHA,
            "rotary_pct": 1.0,
            "use_parallel_residual": False,
            "attention_bias": False,
            "tie_word_embeddings": True,
        },
    ),
    "gemma3": Tiny(
        "gemma3_text",
        {**_GEMMA3, "layer_types": _GEMMA3_LAYERS, "final_logit_softcapping": 30.0},
        _HEADS[:3],
    ),
    "gemma3-bidirectional": Tiny(
        "gemma3_text", {**_GEMMA3, "use_bidirectional_attention": True, "attention_bias": True}
    ),
    "phi3": Tiny("phi3", _GQA, _HEADS[:4]),
    "phi3-partial": Tiny("phi3", {**_MHA, "sliding_window": 5, "partial_rotary_factor": 0.5}, _HEADS[:2]),
    "mixtral": Tiny("mixtral", {**_MIXTRAL, "num_local_experts": 4, "sliding_window": 5}, _HEADS),
    "mixtral-one": Tiny(
        "mixtral", {**_MHA, "num_key_value_heads": 4, "num_local_experts": 3, "num_experts_per_tok": 1}
    ),
    "qwen3_moe": Tiny("qwen3_moe", _MOE, _HEADS),
    "qwen3_moe-mixed": Tiny("qwen3_moe", {**_MOE, "mlp_only_layers": [1], "norm_topk_prob": True}, _HEADS[:2]),
    "olmo2": Tiny("olmo2", _GQA, _HEADS[:3]),
}
