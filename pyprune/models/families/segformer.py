"""SegFormer: stages of pre-norm layers, keys and values from a smaller feature map, a convolution among the neurons.

Its layers are told the height and width of the feature map, and stages start with a convolution, so blocks are not
replayed one by one. The config counts heads by stage, not by layer.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pyprune.models.attention import Attention
from pyprune.models.depth import Depth
from pyprune.models.family import Family, Stack
from pyprune.models.feed_forward import FeedForward
from pyprune.models.images import image_size
from pyprune.models.place import Place

# The config knows no size of images, though old checkpoints give it one: this is what the family's processor makes.
_IMAGE_SIZE = 512


@dataclass(frozen=True)
class MixFeedForward(FeedForward):
    """A feed-forward block with a depthwise convolution, which has no meaning for no channels."""

    def emptied(self, place: Place) -> None:
        """Skip to the output projection, of which only the bias is left."""
        place.layer.mlp.__class__ = EmptyMixMLP


class EmptyMixMLP(nn.Module):
    """A Mix-FFN without neurons."""

    def forward(self, hidden_states: torch.Tensor, height: int, width: int) -> torch.Tensor:
        return self.dropout(self.fc2(hidden_states.new_empty(*hidden_states.shape[:-1], 0)))


def _grid(config: Any, stage: int) -> tuple[int, int]:
    """Rows and columns of a stage's feature map, behind the padded convolution that each stage begins with."""
    rows, columns = image_size(config, _IMAGE_SIZE)
    for kernel, stride in zip(config.patch_sizes[: stage + 1], config.strides[: stage + 1], strict=True):
        outside = 2 * (kernel // 2) - kernel
        rows, columns = (rows + outside) // stride + 1, (columns + outside) // stride + 1
    return rows, columns


def _tokens(config: Any, indices: tuple[int, ...]) -> int:
    rows, columns = _grid(config, indices[0])
    return rows * columns


def _keys(config: Any, indices: tuple[int, ...]) -> int:
    rows, columns = _grid(config, indices[0])
    ratio = config.sr_ratios[indices[0]]
    return (rows // ratio) * (columns // ratio)


FAMILIES = (
    Family(
        model_types=("segformer",),
        hidden=False,
        stacks=(
            Stack(
                layers="stages.*.blocks",
                depth=Depth("depths", staged=True),
                parts=(
                    Attention(
                        module="attention",
                        query="attention.q_proj",
                        key="attention.k_proj",
                        value="attention.v_proj",
                        output="attention.o_proj",
                        counts=("num_attention_heads",),
                        reduced_keys=True,
                        exit=None,
                    ),
                    MixFeedForward(
                        inner=("mlp.fc1", "mlp.dwconv.dwconv"),
                        output="mlp.fc2",
                        exit=None,
                    ),
                ),
                tokens=_tokens,
                keys=_keys,
            ),
        ),
    ),
)
