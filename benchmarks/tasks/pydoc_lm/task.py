"""The task for the runner: perplexity of a small language model in the shape of LLaMA, with grouped queries.

    python -m benchmarks.tasks.run --task pydoc_lm --dense            # trains tokenizer and dense model

The perplexity is that of tokens, so it is comparable for one vocabulary and one version of Python only; both are in
the dense model's key.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.tasks.pydoc_lm.text import documents, split_of
from benchmarks.tasks.task import TrainedTask
from benchmarks.tasks.training import Recipe, optimise

VOCABULARY = 2048
BLOCK = 128
END = "<|end|>"

# Weights are spread by d**-0.5: LLaMA's own spread is for d = 4096.
SHAPE = {
    "num_hidden_layers": 4,
    "hidden_size": 256,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "intermediate_size": 704,
    "initializer_range": 256**-0.5,
}
RECIPE = Recipe(epochs=4.0, batch=16, lr=2e-3, weight_decay=0.1, warmup=0.05)


class PydocLM(TrainedTask):
    """Blocks of 128 tokens; every document ends in an end token. `shape` changes the model's."""

    name = "pydoc_lm"
    metric = "perplexity"
    recovery_samples = 2048

    def __init__(
        self,
        texts: Sequence[tuple[str, str]] | None = None,
        recipe: Recipe | None = None,
        vocabulary: int = VOCABULARY,
        **shape: Any,
    ) -> None:
        self.recipe, self.vocabulary, self.shape = recipe or RECIPE, vocabulary, {**SHAPE, **shape}
        self.texts: dict[str, list[str]] = {"train": [], "dev": [], "test": []}
        for name, text in documents() if texts is None else texts:
            self.texts[split_of(name)].append(text)
        self.codec = trained_tokenizer(self.texts["train"], vocabulary)
        self.blocks = {split: self._blocks(own) for split, own in self.texts.items()}

    def _blocks(self, texts: Sequence[str]) -> torch.Tensor:
        """`[N, 128]` int64; the rest behind the last whole block is left out."""
        end = self.codec.token_to_id(END)
        ids = torch.tensor([token for found in self.codec.encode_batch(list(texts)) for token in (*found.ids, end)])
        return ids[: len(ids) // BLOCK * BLOCK].reshape(-1, BLOCK)

    @property
    def settings(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for blocks in self.blocks.values():
            digest.update(blocks.numpy().tobytes())
        sizes = {"vocabulary": self.vocabulary, **self.shape}
        return {"data": digest.hexdigest(), "recipe": asdict(self.recipe), "shape": sizes}

    def fresh(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        end = self.codec.token_to_id(END)
        config = LlamaConfig(
            vocab_size=self.codec.get_vocab_size(),
            max_position_embeddings=2 * BLOCK,
            tie_word_embeddings=True,
            bos_token_id=end,
            eos_token_id=end,
            pad_token_id=end,
            **self.shape,
        )
        return LlamaForCausalLM(config)

    def train(self, model: nn.Module, seed: int) -> None:
        blocks = self.blocks["train"]

        def loss(index: torch.Tensor) -> torch.Tensor:
            return model(input_ids=blocks[index], labels=blocks[index]).loss

        lengths = torch.full((len(blocks),), BLOCK)
        optimise(model, loss, lengths, self.recipe, seed)

    @torch.inference_mode()
    def evaluate(self, model: nn.Module, split: str = "test") -> float:
        """Perplexity of a token, blocks apart: each but the first of a block is predicted from those before it."""
        model.eval()
        device, loss, blocks = next(model.parameters()).device, 0.0, self.blocks[split]
        for ids in blocks.to(device).split(32):
            loss += float(model(input_ids=ids, labels=ids).loss) * len(ids)
        return math.exp(loss / len(blocks))

    def rows(self, labels: bool) -> list[Any]:
        """The same either way: a text is its own label."""
        return [{"input_ids": block} for block in self.blocks["train"]]

    def example(self, batch: int) -> dict[str, torch.Tensor]:
        blocks = self.blocks["dev"]
        return {"input_ids": blocks[torch.arange(batch) % len(blocks)]}


def trained_tokenizer(texts: Sequence[str], vocabulary: int) -> Any:
    """Byte-level BPE of `texts`: every text can be written in it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


TASK = PydocLM
