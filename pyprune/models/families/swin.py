"""Swin: stages of pre-norm layers with shifted windows, each stage with a head count and a resolution of its own.

Attention sees windows in place of the sequence, and stages end in a downsampling, so blocks are not replayed one by
one. The config counts heads by stage, not by layer.
"""

from typing import Any

from pyprune.models.attention import Attention
from pyprune.models.family import Family, Stack
from pyprune.models.feed_forward import FeedForward
from pyprune.models.images import pair


def _grid(config: Any, stage: int) -> tuple[int, int]:
    """Rows and columns of a stage's feature map: odd ones are padded before every second is dropped."""
    grid = [-(-size // patch) for size, patch in zip(pair(config.image_size), pair(config.patch_size), strict=True)]
    for _ in range(stage):
        grid = [(size + 1) // 2 for size in grid]
    return grid[0], grid[1]


def _tokens(config: Any, indices: tuple[int, ...]) -> int:
    rows, columns = _grid(config, indices[0])
    return rows * columns


def _window_tokens(config: Any, indices: tuple[int, ...]) -> int:
    """Tokens that fill whole windows."""
    window = config.window_size
    rows, columns = (-(-size // window) * window for size in _grid(config, indices[0]))
    return rows * columns


def _keys(config: Any, indices: tuple[int, ...]) -> int:
    return config.window_size**2


FAMILIES = (
    Family(
        model_types=("swin",),
        hidden=False,
        stacks=(
            Stack(
                layers="encoder.layers.*.blocks",
                parts=(
                    Attention(
                        module="attention",
                        query="attention.q_proj",
                        key="attention.k_proj",
                        value="attention.v_proj",
                        output="attention.o_proj",
                        counts=("num_attention_heads",),
                        tables=(("attention.relative_position_bias.relative_position_bias_table", 1),),
                        exit=None,
                    ),
                    FeedForward(inner=("mlp.fc1",), output="mlp.fc2", entry=("layernorm_after", "mlp"), exit=None),
                ),
                tokens=_tokens,
                query_tokens=_window_tokens,
                keys=_keys,
            ),
        ),
    ),
)
