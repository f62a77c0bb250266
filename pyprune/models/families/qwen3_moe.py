"""Qwen3 with experts: any of its layers may have a plain feed-forward layer instead."""

from typing import Any

from torch import nn

from pyprune.models.attention import Attention
from pyprune.models.depth import Depth
from pyprune.models.experts import ExpertNeurons, Experts
from pyprune.models.family import Family, Stack
from pyprune.models.feed_forward import FeedForward


def _routed(layer: nn.Module) -> bool:
    return hasattr(layer.mlp, "experts")


def _plain(layer: nn.Module) -> bool:
    return not hasattr(layer.mlp, "experts")


def _sparse_by_number(config: Any) -> str:
    return "" if config.decoder_sparse_step == 1 else "the layers' numbers say which have experts"


FAMILIES = (
    Family(
        model_types=("qwen3_moe",),
        stacks=(
            Stack(
                layers="layers",
                depth=Depth("num_hidden_layers", indices=("mlp_only_layers",), refuses=_sparse_by_number),
                parts=(
                    Attention(
                        module="self_attn",
                        query="self_attn.q_proj",
                        key="self_attn.k_proj",
                        value="self_attn.v_proj",
                        output="self_attn.o_proj",
                        queries_per_unit="num_key_value_groups",
                        config_key="num_key_value_heads",
                    ),
                    Experts(
                        router="mlp.gate",
                        module="mlp.experts",
                        stacked=("gate_up_proj", "down_proj"),
                        counts=(("mlp.gate", "num_experts"), ("mlp.experts", "num_experts")),
                        limited=(("mlp.gate", "top_k"),),
                        when=_routed,
                    ),
                    ExpertNeurons(
                        module="mlp.experts",
                        router="mlp.gate",
                        fused="gate_up_proj",
                        output="down_proj",
                        width="intermediate_dim",
                        config_key="moe_intermediate_size",
                        when=_routed,
                    ),
                    FeedForward(
                        inner=("mlp.gate_proj", "mlp.up_proj"),
                        output="mlp.down_proj",
                        entry=("post_attention_layernorm", "mlp"),
                        config_key="intermediate_size",
                        when=_plain,
                    ),
                ),
            ),
        ),
        refused=(("output_router_logits", True, "its balancing loss takes as many experts in every layer; unset it"),),
    ),
)
