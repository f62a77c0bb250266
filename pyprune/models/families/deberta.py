"""DeBERTa-v2 and -v3: BERT's layers, with scores between tokens and relative positions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import nn

from pyprune.core.anatomy import Block
from pyprune.models.attention import Attention
from pyprune.models.depth import Depth
from pyprune.models.family import Family, Part, Stack
from pyprune.models.feed_forward import FeedForward
from pyprune.models.place import Place


@dataclass(frozen=True)
class DisentangledAttention(Attention):
    """Attention whose queries also meet projected relative positions, and whose keys do.

    The positions are one table for all layers. Each layer projects it once in a forward pass, by weights of its own or
    (`share_att_key`) by those of queries and keys.
    """

    def block(self, place: Place) -> Block:
        """The block of the layer at `place`."""
        block = super().block(place)
        module = place.layer.get_submodule(self.module)
        if not module.relative_attention:
            return block
        units = block.units
        names = [name for name in ("pos_key_proj", "pos_query_proj") if hasattr(module, name)]
        own = tuple(cut for name in names for cut in place.outputs(f"{self.module}.{name}", units.width))
        shared = (*place.outputs(self.query, units.width), *place.outputs(self.key, units.width))
        positions = 2 * module.pos_ebd_size
        scores = sum(kind in module.pos_att_type for kind in ("c2p", "p2c"))
        cost = replace(
            units.cost,
            params=units.cost.params + place.unit_params(own),
            table_params=place.unit_params(own),
            per_token=scores * positions * units.width,
            per_pass=positions * place.unit_params(shared if module.share_att_key else own),
        )
        return replace(block, units=replace(units, cuts=(*units.cuts, *own), cost=cost))


class DebertaFamily(Family):
    """A family whose first layer may be followed by a convolution, which block-by-block replay does not run."""

    def parts(
        self, model: nn.Module, prefix: str = "", source_tokens: float | None = None
    ) -> Iterator[tuple[Place, Part]]:
        """Every part of every layer; the last of the first layer has no exit where the convolution follows."""
        convolution = getattr(model.config, "conv_kernel_size", 0) > 0
        for place, part in super().parts(model, prefix, source_tokens):
            ends = convolution and place.index == 0 and isinstance(part, FeedForward)
            yield place, replace(part, exit=None) if ends else part


FAMILIES = (
    DebertaFamily(
        model_types=("deberta-v2",),
        stacks=(
            Stack(
                layers="encoder.layer",
                depth=Depth("num_hidden_layers", first=1),
                pairs=True,
                parts=(
                    DisentangledAttention(
                        module="attention.self",
                        query="attention.self.query_proj",
                        key="attention.self.key_proj",
                        value="attention.self.value_proj",
                        output="attention.output.dense",
                        exit=("attention.output.LayerNorm",),
                        head_dim="attention_head_size",
                        counts=("num_attention_heads",),
                        widths=("all_head_size",),
                        config_key="num_attention_heads",
                    ),
                    FeedForward(
                        inner=("intermediate.dense",),
                        output="output.dense",
                        entry=("intermediate",),
                        exit=("output.LayerNorm",),
                        config_key="intermediate_size",
                    ),
                ),
            ),
        ),
    ),
)
