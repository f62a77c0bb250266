"""What the scoring pass costs, beside the same score computed the obvious way, all in one run, in turns.

Providers, each one forward and one backward pass over the same tokens with the same cotangent:

- `pyprune`: taps (`pyprune.capture.collect`), per-sample gradients;
- `published`: mask tensors in the graph, eager attention, weight gradients on (Kwon et al. 2022), gradients per batch;
- `frozen`: forward and backward with frozen weights and fused attention and no scores at all, from the first block's
  input: what any gradient score has to pay;
- `published+compile`: `torch.compile` of `published`.

Cases: `32x128` (full-length batch), and `passages` (the main job's real texts: pyprune batches by length without
padding, the others pad batches of 32 in the data's order). `--bf16` adds pyprune's scoring pass in bfloat16 and its
rank correlation to fp32.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from scipy.stats import spearmanr
from torch import nn

from pyprune.api import pick_device
from pyprune.bench.script import parser
from pyprune.bench.script import results as results_of
from pyprune.bench.timing import interleave
from pyprune.calibration import calibration_data, most_tokens
from pyprune.capture.collect import collect
from pyprune.capture.cotangent import EmbeddingProbe
from pyprune.capture.masking import masked
from pyprune.core.anatomy import Anatomy
from pyprune.core.batches import Batch, Samples, batching
from pyprune.importance.fisher import per_sample
from pyprune.models.adapter import adapter_for
from pyprune.models.loading import load

MODEL = "sentence-transformers/all-MiniLM-L6-v2"


def published(
    model: nn.Module, anatomy: Anatomy, batches: Sequence[Batch], probe: EmbeddingProbe
) -> dict[str, torch.Tensor]:
    """Kwon's procedure: masks are leaves of the graph, one gradient vector a batch, squared and summed."""
    device = next(model.parameters()).device
    masks = {g.name: torch.ones(g.size, device=device, requires_grad=True) for g in anatomy.groups}
    scores = {g.name: torch.zeros(g.size, device=device) for g in anatomy.groups}
    with masked(model, anatomy, masks):
        for batch in batches:
            probe(model(**batch.inputs), batch, 0).backward()
            for name, mask in masks.items():
                scores[name] += mask.grad.square()
                mask.grad = None
            model.zero_grad()
    return scores


def frozen_pass(model: nn.Module, batches: Sequence[Batch], probe: EmbeddingProbe) -> None:
    """Forward and backward to the first block's input, weights frozen."""
    embeddings = model.get_input_embeddings()
    for batch in batches:
        inputs = {k: v for k, v in batch.inputs.items() if k != "input_ids"}
        embedded = embeddings(batch.inputs["input_ids"]).requires_grad_()
        probe(model(inputs_embeds=embedded, **inputs), batch, 0).backward()


def in_order(samples: Samples, size: int) -> list[Batch]:
    """Batches of `size` in the data's own order, padded to their longest sample."""
    whole = [Samples(samples.inputs[i : i + size], None, samples.pad) for i in range(0, len(samples), size)]
    return [batch for part in whole for batch in part.batches(max_tokens=10**9, max_padding=1.0)]


def random_batch(vocabulary: int, size: int, length: int) -> Samples:
    generator = torch.Generator().manual_seed(0)
    return Samples([{"input_ids": torch.randint(5, vocabulary, (length,), generator=generator)} for _ in range(size)])


def main() -> None:
    options = parser(__doc__, repeats=7)
    options.add_argument("--model", default=MODEL)
    options.add_argument("--samples", type=int, default=128, help="passages of the real-text case")
    options.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    options.add_argument("--bf16", action="store_true", help="add the bfloat16 scoring pass")
    args = options.parse_args()

    device = pick_device(args.device)
    model, tokenizer = load(args.model, "float32", device)
    anatomy = adapter_for(model).anatomy(model)
    model.requires_grad_(False)
    eager = copy.deepcopy(model).requires_grad_(True)
    eager.set_attn_implementation("eager")
    probe = EmbeddingProbe(0)
    passages, _ = calibration_data(model, tokenizer, samples=args.samples)
    length = min(128, most_tokens(model, tokenizer))
    full = random_batch(model.config.vocab_size, 32, length)
    cases = {
        f"32x{length}": (full, full.batches(max_tokens=10**9), full.batches(max_tokens=10**9)),
        "passages": (passages, passages.batches(**batching(model)), in_order(passages, 32)),
    }
    results = results_of("score_cost", args, device)
    for kind, (samples, *batches) in cases.items():
        ours, theirs = ([batch.to(device) for batch in some] for some in batches)
        case = kind if args.model == MODEL else f"{kind} model={Path(args.model).name}"
        providers: dict[str, Callable[[], object]] = {
            "pyprune": lambda s=samples, b=ours: collect(model, anatomy, b, probe, s.lengths),
            "published": lambda b=theirs: published(eager, anatomy, b, probe),
            "frozen": lambda b=ours: frozen_pass(model, b, probe),
        }
        if not args.no_compile:
            compiled = torch.compile(eager, dynamic=kind == "passages")
            providers["published+compile"] = lambda b=theirs, m=compiled: published(m, anatomy, b, probe)
        if args.bf16:
            narrow = copy.deepcopy(model).bfloat16()
            providers["pyprune bf16"] = lambda s=samples, b=ours, m=narrow: collect(m, anatomy, b, probe, s.lengths)
        timings = interleave(providers, repeats=args.repeats, warmup=1, device=device)
        base = timings["pyprune"].median
        print(f"\n{case}: {sum(samples.lengths.tolist())} real tokens")
        for name, timing in timings.items():
            print(f"  {name:<20}{timing.median * 1e3:>10.1f} ms   {timing.median / base:>6.2f} x pyprune")
            results.add(case=case, provider=name, metric="ms", value=timing.median * 1e3)
            results.add(case=case, provider=name, metric="ratio to pyprune", value=timing.median / base)
        if args.bf16:
            scores = [per_sample(collect(m, anatomy, ours, probe, samples.lengths)) for m in (model, narrow)]
            flat = [torch.cat(list(s.values())) for s in scores]
            correlation = float(spearmanr(*flat).statistic)
            print(f"  rank correlation of bf16 to fp32 scores: {correlation:.5f}")
            results.add(case=case, provider="pyprune bf16", metric="spearman to fp32", value=correlation)
    if not args.dry:
        results.write()


if __name__ == "__main__":
    main()
