"""The block_configs layout as a format: written, read again from its own config, and compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from pyprune.capture.collect import frozen
from pyprune.formats.exported import Exported, checked
from pyprune.formats.graph import Tensors, trials
from pyprune.models.block_configs import check_layers, read_block_configs, write_block_configs
from pyprune.models.saving import complete_directory


def write_block_configs_checked(model: nn.Module, tokenizer: Any, out: Path) -> Exported:
    """Write the directory `out`, rebuild the model from it and compare; InputError for layers that are not LLaMA's."""
    check_layers(model)
    with complete_directory(out, overwrite=True) as folder:
        note = write_block_configs(model, tokenizer, folder)
        rebuilt = read_block_configs(folder).to(next(model.parameters()).device)
        checks = []
        for name, inputs, expected in trials(model):
            with frozen(rebuilt), torch.no_grad():
                checks.append(checked(name, expected, Tensors(rebuilt, tuple(inputs))(**inputs)))
    return Exported(out, tuple(checks), (note,))
