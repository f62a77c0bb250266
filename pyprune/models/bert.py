"""BERT and its relatives: post-norm encoders with one head count for queries, keys and values."""

from pyprune.models.family import Family

_CROSS_ATTENTION = {
    "add_cross_attention": "cross-attention shares the config's head count and cannot be pruned exactly"
}

FAMILIES = (
    Family(
        model_types=("bert", "roberta"),
        layers="encoder.layer",
        heads_key="num_attention_heads",
        neurons_key="intermediate_size",
        attention="attention.self",
        query="attention.self.query",
        key="attention.self.key",
        value="attention.self.value",
        attention_projection="attention.output.dense",
        attention_exit=("attention.output.LayerNorm",),
        ffn_in=("intermediate.dense",),
        ffn_projection="output.dense",
        ffn_entry=("intermediate",),
        ffn_exit=("output.LayerNorm",),
        head_dim="attention_head_size",
        head_counts=("num_attention_heads",),
        head_widths=("all_head_size",),
        derives_head_dim=True,
        unsupported=_CROSS_ATTENTION,
    ),
    Family(
        model_types=("distilbert",),
        layers="transformer.layer",
        heads_key="n_heads",
        neurons_key="hidden_dim",
        attention="attention",
        query="attention.q_lin",
        key="attention.k_lin",
        value="attention.v_lin",
        attention_projection="attention.out_lin",
        attention_exit=("sa_layer_norm",),
        ffn_in=("ffn.lin1",),
        ffn_projection="ffn.lin2",
        ffn_entry=("ffn",),
        ffn_exit=("output_layer_norm",),
        head_dim="attention_head_size",
        head_counts=("n_heads",),
        head_widths=("dim",),
        derives_head_dim=True,
    ),
)
