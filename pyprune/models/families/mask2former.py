"""Mask2Former: a pixel decoder with deformable attention, a decoder of queries, and a backbone with a table of its own.

The decoder's cross-attention is PyTorch's `MultiheadAttention`: it reads the weights of its output projection without
calling it, so that no mask can act there, and it stays as it is. Masks could act on the rows of its values instead, but
units without an output projection that is called have no scores from data, and would take these from the whole model
(`Anatomy.need_projections`). Both decoders add positions inside attention, and the
queries' next mask depends on each layer's output, so blocks are not replayed one by one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pyprune.core.anatomy import Block
from pyprune.core.units import Attribute, UnitCost, UnitGroup
from pyprune.models.attention import Attention
from pyprune.models.family import Family, Part, Stack
from pyprune.models.feed_forward import FeedForward
from pyprune.models.images import pair
from pyprune.models.place import Place


@dataclass(frozen=True)
class DeformableAttention(Part):
    """Attention of the pixel decoder. One unit is a head: its values, where it looks, and how much that weighs.

    The sampling is no product of matrices and is not counted; it costs a few percent of the projections.
    """

    module: str
    config_key: str = ""
    when: Callable[[nn.Module], bool] | None = None

    def block(self, place: Place) -> Block:
        """The block of the layer at `place`."""
        module, path = place.layer.get_submodule(self.module), f"{place.path}.{self.module}"
        width = module.d_model // max(module.n_heads, 1)
        samples = module.n_levels * module.n_points
        output = f"{self.module}.output_proj"
        cuts = (
            *place.outputs(f"{self.module}.value_proj", width),
            *place.outputs(f"{self.module}.sampling_offsets", 2 * samples),
            *place.outputs(f"{self.module}.attention_weights", samples),
            *place.inputs(output, width),
        )
        group = UnitGroup(
            name=f"{place.name}.heads",
            axis="heads",
            layer=place.index,
            size=module.n_heads,
            width=width,
            cuts=cuts,
            cost=UnitCost(place.unit_params(cuts), tokens=place.tokens),
            attributes=(Attribute(path, "n_heads"), Attribute(path, "d_model", width)),
        )
        return Block(place.path, f"{place.path}.{output}", (), None, group)

    def emptied(self, place: Place) -> None:
        """Let the module run without heads, by whose number it would divide."""
        place.layer.get_submodule(self.module).__class__ = EmptyDeformableAttention


class EmptyDeformableAttention(nn.Module):
    """Deformable attention without heads: the output is the bias of the output projection."""

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Output `[B, T, D]`, and attention weights `[B, T, 0, levels, points]`."""
        batch, length, _ = hidden_states.shape
        weights = hidden_states.new_empty(batch, length, 0, self.n_levels, self.n_points)
        return self.output_proj(hidden_states.new_empty(batch, length, 0)), weights


@dataclass(frozen=True)
class QueryAttention(Attention):
    """Self-attention of the decoder, whose own forward gives the heads' output the width of the hidden state."""

    def cut(self, place: Place, kept: torch.Tensor) -> None:
        """Let the module run with any number of heads, none included."""
        place.layer.get_submodule(self.module).__class__ = NarrowAttention

    def emptied(self, place: Place) -> None:
        """`cut` has done what is needed."""


class NarrowAttention(nn.Module):
    """Self-attention `[T, B, D]` with any number of heads, none included."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: torch.Tensor,
        attention_mask: None = None,
        output_attentions: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Output `[T, B, D]`, and attention weights `[B, H, T, T]` if asked for."""
        placed = hidden_states + position_embeddings
        query, key, value = (
            states.unflatten(-1, (self.num_heads, self.head_dim)).permute(1, 2, 0, 3)
            for states in (self.q_proj(placed) * self.scaling, self.k_proj(placed), self.v_proj(hidden_states))
        )
        weights = nn.functional.softmax(query @ key.transpose(2, 3), dim=-1)
        context = nn.functional.dropout(weights, p=self.dropout, training=self.training) @ value
        output = self.out_proj(context.permute(2, 0, 1, 3).flatten(2))
        return output, weights if output_attentions else None


def _pixels(config: Any, indices: tuple[int, ...]) -> int:
    """Pixels of the three coarsest feature maps, which the pixel decoder takes as one sequence."""
    size = pair(config.backbone_config.image_size)
    grids = [[-(-length // stride) for length in size] for stride in config.feature_strides[-3:]]
    return sum(rows * columns for rows, columns in grids)


def _queries(config: Any, indices: tuple[int, ...]) -> int:
    return config.num_queries


_FEED_FORWARD = FeedForward(inner=("fc1",), output="fc2", exit=None)

FAMILIES = (
    Family(
        model_types=("mask2former",),
        hidden=False,
        stacks=(
            Stack(
                name="pixel_decoder",
                layers="pixel_level_module.decoder.encoder.layers",
                parts=(DeformableAttention("self_attn"), _FEED_FORWARD),
                tokens=_pixels,
            ),
            Stack(
                name="decoder",
                layers="transformer_module.decoder.layers",
                parts=(
                    QueryAttention(
                        module="self_attn",
                        query="self_attn.q_proj",
                        key="self_attn.k_proj",
                        value="self_attn.v_proj",
                        output="self_attn.out_proj",
                        counts=("num_heads",),
                        exit=None,
                    ),
                    _FEED_FORWARD,
                ),
                tokens=_queries,
            ),
        ),
    ),
)
