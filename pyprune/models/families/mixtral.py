"""Mixtral: Mistral's layers with experts in place of the feed-forward layer."""

from pyprune.models.depth import Depth
from pyprune.models.experts import ExpertNeurons, Experts
from pyprune.models.families.llama import GROUPED_ATTENTION, HEAD_DIMS
from pyprune.models.family import Family, Stack

FAMILIES = (
    Family(
        model_types=("mixtral",),
        stacks=(
            Stack(
                layers="layers",
                depth=Depth("num_hidden_layers"),
                parts=(
                    GROUPED_ATTENTION,
                    *HEAD_DIMS,
                    Experts(
                        router="mlp.gate",
                        module="mlp.experts",
                        stacked=("gate_up_proj", "down_proj"),
                        counts=(("mlp.gate", "num_experts"), ("mlp.experts", "num_experts")),
                        limited=(("mlp.gate", "top_k"), ("mlp", "top_k")),
                    ),
                    ExpertNeurons(
                        module="mlp.experts",
                        router="mlp.gate",
                        fused="gate_up_proj",
                        output="down_proj",
                        width="intermediate_dim",
                        config_key="intermediate_size",
                    ),
                ),
            ),
        ),
        refused=(("output_router_logits", True, "its balancing loss takes as many experts in every layer; unset it"),),
    ),
)
