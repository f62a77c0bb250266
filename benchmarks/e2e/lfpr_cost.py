"""What LFPR's scores cost, beside the procedure of the released code, in one run, in turns.

A decoder in the shape of LLaMA with random weights reads prompts of one length and writes 12 tokens. Providers:

- `pyprune`: greedy decoding with a KV cache, then one forward and backward pass over the tokens before the step;
- `released`: greedy decoding step by step over all tokens again, once to find the step and once more to it with the
  graph of every pass, masks that are leaves of it, eager attention and gradients of all weights. Dropout is off.

Both square per batch of 8. The rank correlation of the two scores is recorded too: they are the same up to rounding.
"""

from __future__ import annotations

import copy
from typing import Any

import torch

import pyprune
from pyprune.api import pick_device
from pyprune.bench.script import parser
from pyprune.bench.script import results as results_of
from pyprune.bench.timing import interleave
from pyprune.capture.masking import masked
from pyprune.core.anatomy import Anatomy
from pyprune.core.batches import Samples
from pyprune.core.stages import Stages
from pyprune.models.adapter import adapter_for

SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 4096,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
STEPS, BATCH = 12, 8


def released(model: Any, anatomy: Anatomy, prompts: torch.Tensor) -> dict[str, torch.Tensor]:
    """Squared mask gradients of the largest logit at the median step, summed over batches: `{group: [size]}`."""
    masks = {g.name: torch.ones(g.size, device=prompts.device, requires_grad=True) for g in anatomy.groups}
    scores = {g.name: torch.zeros(g.size, device=prompts.device) for g in anatomy.groups}
    with masked(model, anatomy, masks):
        for batch in prompts.split(BATCH):
            tokens, peaks = batch, []
            with torch.no_grad():
                for _ in range(STEPS):
                    logits = model(tokens, use_cache=False).logits[:, -1]
                    peaks.append(logits.amax(-1))
                    tokens = torch.cat([tokens, logits.argmax(-1, keepdim=True)], 1)
            step = int(torch.stack(peaks, 1).argmax(1).double().quantile(0.5))
            tokens = batch
            for _ in range(step + 1):
                logits = model(tokens, use_cache=False).logits[:, -1]
                tokens = torch.cat([tokens, logits.argmax(-1, keepdim=True)], 1)
            logits.amax(-1).sum().backward()
            for name, mask in masks.items():
                scores[name] += mask.grad.square()
                mask.grad = None
            model.zero_grad()
    return scores


def main() -> None:
    options = parser(__doc__, repeats=5)
    options.add_argument("--samples", type=int, default=32)
    options.add_argument("--length", type=int, default=64, help="tokens of a prompt")
    args = options.parse_args()

    from transformers import LlamaConfig, LlamaForCausalLM

    device = pick_device(args.device)
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM._from_config(LlamaConfig(**SHAPE), attn_implementation="sdpa").to(device).eval()
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    anatomy = adapter_for(model).anatomy(model)
    prompts = torch.randint(1, SHAPE["vocab_size"], (args.samples, args.length), device=device)
    samples = Samples([{"input_ids": row} for row in prompts.cpu()])
    recipe = pyprune.LFPR(steps=STEPS, batch=BATCH, squared="batch")

    def ours() -> dict[str, torch.Tensor]:
        return recipe.score(model, anatomy, samples, 0, Stages(True)).values

    flat = [
        torch.cat([scores[g.name].cpu().double() for g in anatomy.groups])
        for scores in (ours(), released(eager, anatomy, prompts))
    ]
    ranks = torch.stack([scores.argsort().argsort().double() for scores in flat])
    correlation = float(torch.corrcoef(ranks)[0, 1])  # of ranks: Spearman's; scores are not equal by chance
    providers = {"pyprune": ours, "released": lambda: released(eager, anatomy, prompts)}
    timings = interleave(providers, repeats=args.repeats, warmup=1, device=device)
    results = results_of("lfpr_cost", args, device)
    case = f"{args.samples}x{args.length}"
    ratio = timings["released"].median / timings["pyprune"].median
    for name, timing in timings.items():
        results.add(case=case, provider=name, metric="ms", value=timing.median * 1e3)
        print(f"{case}: {name} {timing.median * 1e3:.0f} ms")
    results.add(case=case, provider="pyprune", metric="times as fast", value=ratio)
    results.add(case=case, provider="pyprune", metric="spearman to released", value=correlation)
    print(f"{case}: {ratio:.2f} times as fast, rank correlation {correlation:.5f}")
    if not args.dry:
        results.write()


if __name__ == "__main__":
    main()
