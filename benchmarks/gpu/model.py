"""The model of the main job where none is given: BERT-base's shape, random weights, words for a vocabulary."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.gpu.record import Settings
from pyprune.data.passages import python_reference
from pyprune.testing.checkpoints import word_tokenizer

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def model_directory(settings: Settings) -> Path:
    """The directory that was given, or a random model written to the scratch folder the first time it is asked for."""
    if settings.model is not None:
        return Path(settings.model)
    from transformers import BertConfig, BertModel

    folder = Path(settings.scratch) / f"random-bert-{'tiny' if settings.tiny else 'base'}"
    if not (folder / "tokenizer.json").exists():
        positions = 32 if settings.tiny else 512
        tokenizer = word_tokenizer(" ".join(python_reference()), positions)
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            max_position_embeddings=positions,
            **(TINY if settings.tiny else {}),
        )
        # BERT's 0.02 is meant for training: blocks would add next to nothing, and pruning would change nothing.
        config.initializer_range = config.hidden_size**-0.5
        BertModel(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder
