"""Models of real size, sliced to half: are prefill and decoding really faster, and what does slicing hold in memory?

The shapes of GPT-2 (124 M parameters) and of a LLaMA of 1.2 B, with random weights: speed and memory do not depend on
their values. Half of the heads (KV groups) and of the neurons of every layer go; of GPT-2, where the vocabulary holds
three weights in ten, in a second case half of the tokens too. Dense and sliced are timed in turns, in one run:
*prefill* is one prompt with logits for its last token, *decode* is one token behind a prompt in the cache.
Memory is measured in a process of its own: the model and what slicing holds beyond it, as a multiple of the model.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

import pyprune
from pyprune.api import pick_device
from pyprune.bench.memory import peak_memory
from pyprune.bench.script import parser
from pyprune.bench.script import results as results_of
from pyprune.bench.timing import interleave
from pyprune.core.plan import Plan
from pyprune.models.adapter import adapter_for

PROMPT = 512

# Model type and config of each case, and the axes that have to be asked for.
MODELS: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "gpt2-124m": ("gpt2", {}, ()),
    "gpt2-124m and vocabulary": ("gpt2", {}, ("vocab",)),
    "llama-1.2b": (
        "llama",
        {
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "vocab_size": 128256,
            "tie_word_embeddings": True,
        },
        (),
    ),
}


def build(name: str, device: str) -> nn.Module:
    """The model with random weights, float32 on a CPU and bfloat16 on a GPU."""
    from transformers import AutoConfig, AutoModelForCausalLM

    model_type, config, _ = MODELS[name]
    torch.manual_seed(0)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **config), dtype=dtype)
    return made.to(device).eval()


def half(model: nn.Module, axes: Sequence[str]) -> Plan:
    """Keep a random half of the units of every group; tokens that the model needs among them."""
    anatomy = adapter_for(model).anatomy(model, axes)
    plan = Plan.keep_all(anatomy)
    generator = torch.Generator().manual_seed(0)
    for g in anatomy.groups:
        units = torch.randperm(g.size, generator=generator)
        if anatomy.vocabulary and g is anatomy.vocabulary.units:
            units = torch.tensor(anatomy.vocabulary.closed(units.tolist()))
        plan.kept[g.name] = units[: g.size // 2].sort().values
    return plan


def prefill(model: nn.Module, ids: torch.Tensor) -> Callable[[], object]:
    return lambda: model(input_ids=ids, use_cache=True, logits_to_keep=1)


def decode(model: nn.Module, ids: torch.Tensor) -> Callable[[], object]:
    """One more token behind `ids`; the cache is cut back after each call."""
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    model(input_ids=ids, past_key_values=cache)

    def step() -> None:
        model(input_ids=ids[:, -1:], past_key_values=cache)
        cache.crop(-1)

    return step


def slicing_share(name: str, device: str) -> float:
    """Peak bytes of slicing, the model included, as a multiple of the model; in a process of its own."""
    command = [sys.executable, __file__, "--models", name, "--device", device, "--only-memory"]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def own_slicing_share(name: str, device: str) -> float:
    model = build(name, device)
    held = sum(p.nbytes for p in model.parameters())
    plan = half(model, MODELS[name][2])
    return 1 + peak_memory(lambda: pyprune.apply(model, plan, inplace=True)) / held


@torch.no_grad()
def main() -> None:
    options = parser(__doc__, repeats=15)
    options.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    options.add_argument("--only-memory", action="store_true", help="print the peak of slicing, nothing else")
    args = options.parse_args()

    device = pick_device(args.device)
    if args.only_memory:
        print(own_slicing_share(args.models[0], device))
        return
    results = results_of("midsize", args, device)
    for name in args.models:
        share = slicing_share(name, device)
        results.add(case=name, provider="pyprune", metric="slicing peak / model", value=share)
        print(f"\n{name}: slicing holds {share:.2f} x the model at its peak")
        dense = build(name, device)
        models = {"dense": dense, "pruned": pyprune.apply(dense, half(dense, MODELS[name][2]))}
        ids = torch.randint(
            0, models["pruned"].config.vocab_size, (1, PROMPT), generator=torch.Generator().manual_seed(1)
        )
        for phase, prepare in (("prefill", prefill), ("decode", decode)):
            calls = {which: prepare(model, ids.to(device)) for which, model in models.items()}
            timings = interleave(calls, repeats=args.repeats, warmup=2, device=device)
            ratio = timings["dense"].median / timings["pruned"].median
            case = f"{name} {phase} 1x{PROMPT if phase == 'prefill' else 1}"
            for which, timing in timings.items():
                results.add(case=case, provider=which, metric="ms", value=timing.median * 1e3)
            results.add(case=case, provider="pruned", metric="times as fast", value=ratio)
            times = ", ".join(f"{which} {timing.median * 1e3:.1f} ms" for which, timing in timings.items())
            print(f"  {case}: {times}, {ratio:.2f} times as fast")
        del dense, models, calls
    if not args.dry:
        results.write()


if __name__ == "__main__":
    main()
