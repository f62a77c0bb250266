"""What a step of ReSt costs, beside a plain `Trainer` step of the dense model, in one run, in turns.

A BERT classifier with random weights reads texts of one length in batches of 16. Providers:

- `trainer`: transformers' `Trainer` on all weights of the dense model, with labels, AdamW;
- `rest 60%`, `rest 40%`: `pyprune.retrain` of models with that share of the prunable parameters: masks, output heads
  and the last quarter, or half, of the layers. The dense model's answers are made anew in every repeat and counted.
"""

from __future__ import annotations

import copy
import tempfile
from typing import Any

import torch

import pyprune
from pyprune.api import pick_device
from pyprune.bench.script import parser
from pyprune.bench.script import results as results_of
from pyprune.bench.timing import interleave

SHAPES = {
    "small": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
    "tiny": {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64},
}
CLASSES, VOCABULARY, BATCH = 20, 8192, 16
# Share of the prunable parameters: share of the layers that are trained.
SIZES = {0.6: 0.25, 0.4: 0.5}


def trained_dense(model: Any, rows: list[dict[str, torch.Tensor]], labels: torch.Tensor) -> None:
    """One epoch of a plain `Trainer`."""
    from transformers import PrinterCallback, Trainer, TrainingArguments

    data = [{**row, "labels": label} for row, label in zip(rows, labels, strict=True)]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=1,
            per_device_train_batch_size=BATCH,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            use_cpu=model.device.type == "cpu",
            disable_tqdm=True,
        )
        trainer = Trainer(model=model, args=arguments, train_dataset=data)
        trainer.remove_callback(PrinterCallback)
        trainer.train()


def main() -> None:
    options = parser(__doc__, repeats=5)
    options.add_argument("--shape", choices=SHAPES, default="small")
    options.add_argument("--length", type=int, default=64, help="tokens of a text")
    options.add_argument("--steps", type=int, default=8)
    args = options.parse_args()

    from transformers import BertConfig, BertForSequenceClassification

    device = pick_device(args.device)
    torch.manual_seed(0)
    shape = SHAPES[args.shape]
    config = BertConfig(vocab_size=VOCABULARY, num_labels=CLASSES, **shape)
    dense = BertForSequenceClassification(config).to(device).eval()
    tokens = torch.randint(1, VOCABULARY, (args.steps * BATCH, args.length))
    rows = [{"input_ids": row} for row in tokens]
    labels = torch.randint(CLASSES, (len(rows),))
    scores = pyprune.score(dense, rows[:BATCH], recipe="lfpr", batch=8)
    providers: dict[str, Any] = {"trainer": lambda: trained_dense(copy.deepcopy(dense), rows, labels)}
    for size, part in SIZES.items():
        pruned = pyprune.apply(dense, pyprune.plan(dense, scores, {"params": size}, recipe="lfpr"))
        settings = {"share": 1.0, "layers": round(part * shape["num_hidden_layers"]), "batch_size": BATCH}
        providers[f"rest {size:.0%}"] = lambda pruned=pruned, settings=settings: pyprune.retrain(
            pruned, dense, rows, samples=len(rows), **settings
        )
    timings = interleave(providers, repeats=args.repeats, warmup=1, device=device)
    results = results_of("rest_cost", args, device)
    case = f"{args.shape} {BATCH}x{args.length}"
    for name, timing in timings.items():
        rate, ratio = args.steps / timing.median, timings["trainer"].median / timing.median
        results.add(case=case, provider=name, metric="steps/s", value=rate)
        results.add(case=case, provider=name, metric="times as fast as trainer", value=ratio)
        print(f"{case}: {name} {rate:.2f} steps/s, {ratio:.2f} times a plain Trainer's")
    if not args.dry:
        results.write()


if __name__ == "__main__":
    main()
