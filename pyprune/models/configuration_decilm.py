"""The config class of checkpoints in the block_configs layout, copied beside their weights: transformers has none.

It stands alone, since it is read there by `AutoConfig.from_pretrained(..., trust_remote_code=True)`, without pyprune.
"""

from transformers import LlamaConfig


class Entry(dict):
    """A dict whose items are attributes too, as engines read them; it is written to JSON as it is."""

    def __getattr__(self, name):
        if name not in self:
            raise AttributeError(name)
        return self[name]


class DeciLMConfig(LlamaConfig):
    model_type = "nemotron-nas"

    def __init__(self, block_configs=(), **kwargs):
        super().__init__(**kwargs)
        self.block_configs = [Entry({part: Entry(entry) for part, entry in block.items()}) for block in block_configs]
