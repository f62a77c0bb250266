"""Llama and its relatives: pre-norm decoders with rotary positions, grouped queries and gated feed-forward layers."""

from pyprune.models.family import Family

FAMILIES = (
    Family(
        model_types=("llama", "mistral", "qwen2", "qwen3"),
        layers="layers",
        heads_key="num_key_value_heads",
        neurons_key="intermediate_size",
        attention="self_attn",
        query="self_attn.q_proj",
        key="self_attn.k_proj",
        value="self_attn.v_proj",
        attention_projection="self_attn.o_proj",
        ffn_in=("mlp.gate_proj", "mlp.up_proj"),
        ffn_projection="mlp.down_proj",
        ffn_entry=("post_attention_layernorm", "mlp"),
        head_dim="head_dim",
        queries_per_unit="num_key_value_groups",
    ),
)
