"""What OPTIN's scores cost, beside one forward pass per unit as published, in one process.

MiniLM with a random head of eight classes reads lines of Python's documentation. Providers:

- `pyprune`: probes for all neurons, heads exactly;
- `band`: besides, the neurons that `--band` of them make up exactly;
- `published`: for each unit one masked forward pass over all samples, in which every layer's Gram matrix of 768 tokens,
  drawn anew, is taken of both models again. Measured on `--units` units of every block and extrapolated to all.

The rank correlation of neurons' scores with exact ones in float64 is recorded of the same units.
"""

from __future__ import annotations

import copy
import inspect
import pydoc_data.topics
import time
from typing import Any

import torch

import pyprune
from pyprune.bench.script import parser
from pyprune.bench.script import results as results_of
from pyprune.capture.leave_one_out import leave_one_out
from pyprune.capture.masking import masked
from pyprune.capture.trajectory import features, first_later, points, unit_rows
from pyprune.core.anatomy import Anatomy
from pyprune.core.batches import Batch, Samples, batching
from pyprune.core.stages import Stages
from pyprune.models.adapter import adapter_for

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
CLASSES, ROWS = 8, 768


def classifier(name: str) -> tuple[Any, Any]:
    """The encoder called `name` with a random head, and its tokenizer."""
    from transformers import AutoModelForSequenceClassification

    encoder, tokenizer = pyprune.load(name)
    encoder.config.num_labels = CLASSES
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(encoder.config)
    model.base_model.load_state_dict(encoder.state_dict())
    torch.nn.init.normal_(model.classifier.weight, std=0.3)
    return model.eval().requires_grad_(False), tokenizer


def lines() -> list[str]:
    """Lines of some words each from Python's documentation."""
    text = "\n".join(inspect.cleandoc(page) for page in pydoc_data.topics.topics.values())
    return [line for line in text.splitlines() if len(line.split()) > 5]


@torch.no_grad()
def published(model: Any, anatomy: Anatomy, batches: list[Batch], units: dict[str, torch.Tensor]) -> int:
    """Score `units` as the released code does, and forget it; how many they were."""
    last, count = points(anatomy), 0

    def passed() -> tuple[dict[int, torch.Tensor], torch.Tensor]:
        rows: dict[int, list[torch.Tensor]] = {z: [] for z in last}
        logits = []
        with features(model, last) as found:
            for batch in batches:
                logits.append(model(**batch.inputs).logits)
                for z, f in found.items():
                    rows[z].append(f.flatten(0, 1))
        return {z: torch.cat(parts) for z, parts in rows.items()}, torch.cat(logits)

    teacher, before = passed()
    for name, chosen in units.items():
        block = anatomy.block(name)
        for unit in chosen.tolist():
            mask = torch.ones(block.units.size)
            mask[unit] = 0
            with masked(model, anatomy, {name: mask}):
                student, after = passed()
            total = (before.softmax(-1) * (before.log_softmax(-1) - after.log_softmax(-1))).sum() * 16
            for z in range(first_later(anatomy, block), len(teacher)):
                drawn = torch.randperm(len(teacher[z]))[:ROWS]
                t, s = (unit_rows(rows[z], None)[drawn] for rows in (teacher, student))
                total += (t @ t.T - s @ s.T).square().sum()
            count += bool(torch.isfinite(total))
    return count


def seconds(run: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def main() -> None:
    options = parser(__doc__, repeats=1)
    options.add_argument("--model", default=MINILM)
    options.add_argument("--tokens", type=int, default=1024)
    options.add_argument("--probes", type=int, nargs="+", default=[32, 128])
    options.add_argument("--band", type=float, default=0.1)
    options.add_argument("--units", type=int, default=8, help="of every block, for what is measured on a sample")
    args = options.parse_args()

    model, tokenizer = classifier(args.model)
    anatomy = adapter_for(model).anatomy(model)
    rows = [
        {"input_ids": torch.tensor(tokenizer(line, truncation=True)["input_ids"])} for line in lines()[: args.tokens]
    ]
    samples = Samples(rows)
    samples = samples.first(int((samples.lengths.cumsum(0) <= args.tokens).sum()))
    batches = samples.batches(**batching(model))
    sizes = {g.name: g.size for g in anatomy.groups}
    generator = torch.Generator().manual_seed(0)
    picked = {n: torch.randperm(size, generator=generator)[: args.units] for n, size in sizes.items()}
    neurons = {n: at for n, at in picked.items() if "neurons" in n}

    wide = copy.deepcopy(model).double()
    exact = leave_one_out(wide, anatomy, batches, neurons)
    seconds(lambda: published(model, anatomy, batches, {n: at[:1] for n, at in picked.items()}))  # warms up
    taken, count = seconds(lambda: published(model, anatomy, batches, picked))
    whole = taken / count * sum(sizes.values())
    timings = {"published": whole}
    results = results_of("optin_cost", args, "cpu")
    case = f"{int(samples.lengths.sum())} tokens"

    def flat(values: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.cat([values[n][at] for n, at in neurons.items()])

    for probes in args.probes:
        recipe = pyprune.OPTIN(probes=probes, tokens=args.tokens, lambda_c=0.1)
        timings[f"pyprune {probes}"], found = seconds(
            lambda r=recipe: r.score(model, anatomy, samples, 0, Stages(True))
        )
        expected = flat(exact.trajectory) + found.meta["balance"] * flat(exact.answer)
        ranks = torch.stack([v.argsort().argsort().double() for v in (flat(found.values), expected)])
        correlation = float(torch.corrcoef(ranks)[0, 1])
        results.add(case=case, provider=f"pyprune {probes}", metric="spearman to exact", value=correlation)
        print(f"{case}, {probes} probes: rank correlation of neurons {correlation:.4f}")
    recipe = pyprune.OPTIN(probes=args.probes[-1], tokens=args.tokens, band=args.band)
    timings[f"band {args.probes[-1]}"], _ = seconds(lambda: recipe.score(model, anatomy, samples, 0, Stages(True)))
    for name, taken in timings.items():
        results.add(case=case, provider=name, metric="s", value=taken)
        results.add(case=case, provider=name, metric="times as fast", value=whole / taken)
        print(f"{case}: {name} {taken:.1f} s, {whole / taken:.1f} times as fast as published")
    if not args.dry:
        results.write()


if __name__ == "__main__":
    main()
