"""Fine-tune MiniLM on the task, once: the result is cached by data, base model and hyper-parameters.

    python -m benchmarks.tasks.debian_sections.finetune             # minutes the first time, seconds afterwards

The base model is a bare encoder: its pooler, where the checkpoint lacks one, and the classifier start at random.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm
from transformers import AutoModelForSequenceClassification, AutoTokenizer, get_linear_schedule_with_warmup

from benchmarks.tasks.debian_sections.data import DataError, Task, load
from benchmarks.tasks.debian_sections.evaluate import Encoded, accuracy, batches, encode
from benchmarks.tasks.task import CACHE
from pyprune import PyPruneError
from pyprune.models.loading import resolve

MINILM = "sentence-transformers/all-MiniLM-L6-v2"


def has_amx_bf16() -> bool:
    """Whether the CPU multiplies bf16 matrices in hardware (AMX).

    There a training step takes half the time in bf16 (0.85 s for 1.6 s on one core), at equal accuracy: on a slice of
    10,000 packages, test 75.0 % with either, dev 72.2 and 72.4 %.
    """
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and "amx_bf16" in cpuinfo.read_text().split()


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters: AdamW, linear decay after a warm-up over the first `warmup` of all steps."""

    epochs: int = 3
    batch: int = 128
    lr: float = 2e-4
    weight_decay: float = 0.01
    warmup: float = 0.06
    autocast_bf16: bool = field(default_factory=has_amx_bf16)
    seed: int = 0


@dataclass(frozen=True)
class FineTuned:
    """A fine-tuned model, its tokenizer and what it reached; `report` holds dev and test accuracy and seconds."""

    model: nn.Module
    tokenizer: Any
    directory: Path
    report: dict[str, Any]


def finetuned(task: Task, base: str = MINILM, recipe: Recipe = Recipe(), cache: Path = CACHE) -> FineTuned:
    """Load the cached model of this task, base model (hub id or directory) and recipe, or train it now.

    Raises PyPruneError when there is no such base model.
    """
    base, _ = resolve(base)
    directory = cache / "debian_sections" / _key(task, base, recipe)
    if not directory.exists():
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory.parent) as partial:
            _finetune_into(Path(partial), task, base, recipe)
            os.rename(partial, directory)
            os.mkdir(partial)  # for the context manager to remove
    return FineTuned(
        AutoModelForSequenceClassification.from_pretrained(directory).eval(),
        AutoTokenizer.from_pretrained(directory),
        directory,
        json.loads((directory / "finetune.json").read_text()),
    )


def base_tokenizer(base: str) -> Any:
    """The tokenizer that comes with the base model."""
    return AutoTokenizer.from_pretrained(resolve(base)[0])


def train(model: nn.Module, data: Encoded, recipe: Recipe, progress: Callable = tqdm) -> None:
    """Train in place; equal seeds give equal weights on one machine with one number of threads."""
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(recipe.seed)
    torch.manual_seed(recipe.seed)  # dropout
    optimizer = torch.optim.AdamW(_parameter_groups(model, recipe.weight_decay), lr=recipe.lr, fused=True)
    steps = recipe.epochs * -(-len(data.ids) // recipe.batch)
    schedule = get_linear_schedule_with_warmup(optimizer, int(recipe.warmup * steps), steps)
    model.train()
    with progress(total=steps, desc="fine-tuning", mininterval=2) as bar:
        for _ in range(recipe.epochs):
            for inputs, labels in batches(data, recipe.batch, generator):
                with torch.autocast(device.type, torch.bfloat16, enabled=recipe.autocast_bf16):
                    logits = model(**{key: value.to(device) for key, value in inputs.items()}).logits
                loss = nn.functional.cross_entropy(logits.float(), labels.to(device))
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                bar.update()
    model.eval()


def _finetune_into(directory: Path, task: Task, base: str, recipe: Recipe) -> None:
    torch.manual_seed(recipe.seed)  # the fresh pooler and classifier
    model = AutoModelForSequenceClassification.from_pretrained(
        base,
        num_labels=len(task.labels),
        id2label=dict(enumerate(task.labels)),
        label2id={label: i for i, label in enumerate(task.labels)},
    ).float()
    tokenizer = AutoTokenizer.from_pretrained(base)
    start = time.perf_counter()
    train(model, encode(task.train, task, tokenizer), recipe)
    report = {
        "dev_accuracy": accuracy(model, encode(task.dev, task, tokenizer)),
        "test_accuracy": accuracy(model, encode(task.test, task, tokenizer)),
        "seconds": round(time.perf_counter() - start, 1),
        "data_sha256": task.sha256,
        "recipe": asdict(recipe),
    }
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    (directory / "finetune.json").write_text(json.dumps(report, indent=2) + "\n")


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Biases and norm weights are not decayed, as BERT was trained."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]


def _key(task: Task, base: str, recipe: Recipe) -> str:
    digest = hashlib.sha256(f"{task.sha256} {json.dumps(asdict(recipe))}".encode())
    weights = sorted(Path(base).glob("*.safetensors"))  # of a directory; a hub id stands for itself
    for part in [file.read_bytes() for file in weights] or [base.encode()]:
        digest.update(part)
    return digest.hexdigest()[:16]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tsv", help="records instead of asking apt")
    parser.add_argument("--base", default=MINILM, help="hub id or directory of the model to start from")
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=Recipe.epochs)
    parser.add_argument("--lr", type=float, default=Recipe.lr)
    parser.add_argument(
        "--bf16",
        action=argparse.BooleanOptionalAction,
        default=has_amx_bf16(),
        help="train under bf16 autocast (default: where the CPU has AMX)",
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    recipe = Recipe(epochs=args.epochs, lr=args.lr, autocast_bf16=args.bf16)
    try:
        result = finetuned(load(args.tsv), args.base, recipe, args.cache)
    except (DataError, PyPruneError) as error:
        sys.exit(f"error: {error}")
    print(json.dumps(result.report, indent=2))
    print(result.directory)


if __name__ == "__main__":
    main()
