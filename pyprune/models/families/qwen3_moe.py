"""Qwen3 with experts: any of its layers may have a plain feed-forward layer instead."""

from dataclasses import replace
from typing import Any

from torch import nn

from pyprune.models.depth import Depth
from pyprune.models.experts import ExpertNeurons, Experts
from pyprune.models.families.llama import GATED_FEED_FORWARD, GROUPED_ATTENTION, HEAD_DIMS
from pyprune.models.family import Family, Stack


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
                    GROUPED_ATTENTION,
                    *HEAD_DIMS,
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
                    replace(GATED_FEED_FORWARD, when=_plain),
                ),
            ),
        ),
        refused=(("output_router_logits", True, "its balancing loss takes as many experts in every layer; unset it"),),
    ),
)
