"""The task for the runner: exact match of the greedily decoded answers of a small BLIP.

python -m benchmarks.tasks.run --task easy_vqa --dense      # trains the dense model
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import BlipConfig, BlipForQuestionAnswering

from benchmarks.tasks.easy_vqa.data import BEGIN, END, PAD, SIDE, VOCABULARY, Data, found, read
from benchmarks.tasks.task import TrainedTask
from benchmarks.tasks.training import Recipe, optimise

# A batch is of images, each with some of its questions: an epoch asks this share of all.
RECIPE = Recipe(epochs=25.0, batch=32, lr=1e-3, weight_decay=0.05, warmup=0.1)
ASKED = 0.3
PATCH = 8
# Questions have at most 9 tokens and answers 2, but a pruned model may not find the end.
POSITIONS = 64


def config(
    width: int = 128, heads: int = 4, neurons: int = 512, image_layers: int = 3, text_layers: int = 2
) -> BlipConfig:
    """Of an image encoder of `image_layers`, and of `text_layers` each for the questions and the answers."""
    # BLIP's own spread of weights is for d = 768: narrow layers would pass on so little that the image goes unseen.
    spread = {"initializer_range": width**-0.5}
    shape = {"hidden_size": width, "num_attention_heads": heads, "intermediate_size": neurons, **spread}
    image = {"image_size": SIDE, "patch_size": PATCH, "num_hidden_layers": image_layers}
    text = {
        "vocab_size": len(VOCABULARY),
        "max_position_embeddings": POSITIONS,
        "num_hidden_layers": text_layers,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "pad_token_id": PAD,
        "bos_token_id": BEGIN,
        "sep_token_id": END,
        "eos_token_id": END,
    }
    return BlipConfig(text_config={**shape, **text}, vision_config={**shape, **image}, **spread)


class EasyVQA(TrainedTask):
    """`shape` changes the model's: see `config`."""

    name = "easy_vqa"
    metric = "exact match"

    def __init__(self, folder: Path | None = None, recipe: Recipe | None = None, **shape: int) -> None:
        self.data = read(folder or found())
        self.recipe, self.shape = recipe or RECIPE, shape

    @property
    def settings(self) -> dict[str, Any]:
        hashes = {split: own.sha256 for split, own in self.data.items()}
        return {"data": hashes, "recipe": {**asdict(self.recipe), "asked": ASKED}, "shape": self.shape}

    def fresh(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return BlipForQuestionAnswering(config(**self.shape))

    def train(self, model: nn.Module, seed: int) -> None:
        own = self.data["train"]
        generator = torch.Generator().manual_seed(seed)

        def loss(index: torch.Tensor) -> torch.Tensor:
            asked = torch.isin(own.about, index).nonzero().flatten()
            order = torch.randperm(len(asked), generator=generator)
            asked = asked[order[: max(1, round(ASKED * len(asked)))]]
            logits, targets = answered(model, own, asked, lambda images: flipped(images, generator))
            return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

        optimise(model, loss, own.counts, self.recipe, seed)

    @torch.inference_mode()
    def evaluate(self, model: nn.Module, split: str = "test") -> float:
        """Share of questions whose greedily decoded answer is right, and ends there.

        That is so where the right answer's tokens are each the most likely behind those before them.
        """
        model.eval()
        own, right = self.data[split], 0
        for asked in torch.arange(len(own.answers)).split(500):
            logits, targets = answered(model, own, asked)
            right += int((logits.argmax(-1) == targets).all(1).sum())
        return right / len(own.answers)

    def rows(self, labels: bool) -> list[Any]:
        own = self.data["train"]
        images = list(own.images)
        rows = [
            {"pixel_values": images[image], "input_ids": question}
            for image, question in zip(own.about.tolist(), own.questions, strict=True)
        ]
        if not labels:
            return rows
        ends = torch.stack([own.answers, torch.full_like(own.answers, END)], 1)
        return [{**row, "labels": answer} for row, answer in zip(rows, ends, strict=True)]

    def example(self, batch: int) -> dict[str, torch.Tensor]:
        own = self.data["dev"]
        asked = torch.arange(batch) % len(own.answers)
        return {
            "pixel_values": own.images[own.about[asked]],
            "input_ids": own.questions[asked],
            "decoder_input_ids": torch.full((batch, 2), BEGIN),
        }


def answered(
    model: nn.Module, own: Data, asked: torch.Tensor, change: Callable[[torch.Tensor], torch.Tensor] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits `[Q, 2, words]` and targets `[Q, 2]` of the questions `asked` `[Q]`, about images as `change` leaves them.

    As the model's forward does it, but for an image going through its encoder once, not once a question.
    """
    device = next(model.parameters()).device
    index, place = own.about[asked].unique(return_inverse=True)
    images = own.images[index] if change is None else change(own.images[index])
    targets = torch.stack([own.answers[asked], torch.full_like(asked, END)], 1).to(device)
    seen = model.vision_model(pixel_values=images.to(device)).last_hidden_state[place.to(device)]
    read = model.text_encoder(input_ids=own.questions[asked].to(device), encoder_hidden_states=seen)
    said = F.pad(targets[:, :-1], (1, 0), value=BEGIN)
    return model.text_decoder(input_ids=said, encoder_hidden_states=read.last_hidden_state).logits, targets


def flipped(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A half of the images `[I, 3, 64, 64]` mirrored, left to right."""
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(mirrored[:, None, None, None], images.flip(-1), images)


TASK = EasyVQA
