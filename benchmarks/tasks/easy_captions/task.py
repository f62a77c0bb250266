"""The task for the runner: exact match of greedily decoded captions, such as "a blue circle".

python -m benchmarks.tasks.run --task easy_captions --dense      # trains the dense model
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GitConfig, GitForCausalLM

from benchmarks.tasks.easy_vqa.data import (
    BEGIN,
    COLOURS,
    END,
    NUMBER,
    PAD,
    SHAPES,
    SIDE,
    VOCABULARY,
    Data,
    found,
    read,
)
from benchmarks.tasks.easy_vqa.task import PATCH, POSITIONS, flipped
from benchmarks.tasks.task import TrainedTask
from benchmarks.tasks.training import Recipe, optimise

RECIPE = Recipe(epochs=20.0, batch=32, lr=1e-3, weight_decay=0.05, warmup=0.1)


def config(
    width: int = 128, heads: int = 4, neurons: int = 512, image_layers: int = 3, text_layers: int = 2
) -> GitConfig:
    """Of an image encoder of `image_layers` and a decoder of `text_layers`, which reads image and text as one."""
    shape = {"hidden_size": width, "num_attention_heads": heads, "intermediate_size": neurons}
    shape["initializer_range"] = width**-0.5  # as in easy_vqa
    return GitConfig(
        vision_config={**shape, "image_size": SIDE, "patch_size": PATCH, "num_hidden_layers": image_layers},
        vocab_size=len(VOCABULARY),
        max_position_embeddings=POSITIONS,
        num_hidden_layers=text_layers,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=PAD,
        bos_token_id=BEGIN,
        eos_token_id=END,
        **shape,
    )


class EasyCaptions(TrainedTask):
    """Images and splits are those of easy_vqa, as far as its questions and answers tell colour and shape.

    `data` holds images `[I, 3, 64, 64]` and captions `[I, 5]`: begin, "a", colour, shape, end.
    """

    name = "easy_captions"
    metric = "exact match"

    def __init__(self, folder: Path | None = None, recipe: Recipe | None = None, **shape: int) -> None:
        self.asked = read(folder or found())
        self.data = {split: captioned(own) for split, own in self.asked.items()}
        self.recipe, self.shape = recipe or RECIPE, shape

    @property
    def settings(self) -> dict[str, Any]:
        hashes = {split: own.sha256 for split, own in self.asked.items()}
        return {"data": hashes, "recipe": asdict(self.recipe), "shape": self.shape}

    def fresh(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return GitForCausalLM(config(**self.shape))

    def train(self, model: nn.Module, seed: int) -> None:
        images, captions = self.data["train"]
        generator = torch.Generator().manual_seed(seed)

        def loss(index: torch.Tensor) -> torch.Tensor:
            logits = _logits(model, flipped(images[index], generator), captions[index])
            return F.cross_entropy(logits.flatten(0, 1), captions[index][:, 1:].flatten())

        optimise(model, loss, torch.ones(len(images), dtype=torch.int64), self.recipe, seed)

    @torch.inference_mode()
    def evaluate(self, model: nn.Module, split: str = "test") -> float:
        """Share of images whose greedily decoded caption is right to its end.

        That is so where each token of the right caption is the most likely one behind those before it.
        """
        model.eval()
        device, right = next(model.parameters()).device, 0
        images, captions = (tensor.to(device) for tensor in self.data[split])
        for own, said in zip(images.split(250), captions.split(250), strict=True):
            right += int((_logits(model, own, said).argmax(-1) == said[:, 1:]).all(1).sum())
        return right / len(images)

    def rows(self, labels: bool) -> list[Any]:
        """With labels the right caption is the text; without, the text is what the model writes."""
        images, captions = self.data["train"]
        if not labels:
            return [{"pixel_values": image} for image in images]
        pairs = zip(images, captions, strict=True)
        return [{"pixel_values": image, "input_ids": caption} for image, caption in pairs]

    def example(self, batch: int) -> dict[str, torch.Tensor]:
        images, captions = self.data["dev"]
        index = torch.arange(batch) % len(images)
        return {"pixel_values": images[index], "input_ids": captions[index]}


def captioned(own: Data) -> tuple[torch.Tensor, torch.Tensor]:
    """The images whose colour and shape are known, `[I, 3, 64, 64]`, and captions of these, `[I, 5]`.

    An answer tells of its image, and so do the words of its question where they are said of the image: with a "what",
    a "yes", or a "no" to "is there not".
    """
    denied = torch.isin(own.questions, _tokens("no", "not")).any(1)
    holds = torch.where(denied, own.answers != NUMBER["yes"], own.answers != NUMBER["no"])
    told = torch.cat([own.questions.where(holds[:, None], PAD), own.answers[:, None]], 1)
    seen = torch.zeros(len(own.images), len(VOCABULARY), dtype=torch.bool)
    seen[own.about[:, None].expand_as(told), told] = True
    colours, shapes = (seen[:, _tokens(*words)] for words in (COLOURS, SHAPES))
    known = (colours.any(1) & shapes.any(1)).nonzero().flatten()
    looks = [_tokens(*words)[found[known].int().argmax(1)] for words, found in ((COLOURS, colours), (SHAPES, shapes))]
    begin, article, end = (torch.full_like(known, token) for token in (BEGIN, NUMBER["a"], END))
    return own.images[known], torch.stack([begin, article, *looks, end], 1)


def _tokens(*words: str) -> torch.Tensor:
    return torch.tensor([NUMBER[word] for word in words])


def _logits(model: nn.Module, images: torch.Tensor, captions: torch.Tensor) -> torch.Tensor:
    """`[B, 4, words]`: of the tokens that follow each but the last of `captions` `[B, 5]`."""
    return model(pixel_values=images, input_ids=captions[:, :-1]).logits[:, 1 - captions.shape[1] :]


TASK = EasyCaptions
