"""Tiny random models of every supported family: the real modelling code, with forwards of a few milliseconds."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from pyprune.core.anatomy import Anatomy
from pyprune.core.plan import Plan
from pyprune.testing.zoo import ZOO

# The variants that every stage is tested with; slicing and reloading are tested with the whole zoo.
VARIANTS = (
    *("bert", "bert-decoder", "roberta", "distilbert", "llama", "llama-mha", "llama-biased"),
    *("mistral", "qwen2", "qwen2-window", "qwen3"),
)


def heads(variant: str) -> tuple[str, ...]:
    """Names of the transformers classes that a variant can be built as."""
    return ZOO[variant].heads


def tiny_config(variant: str, **overrides: Any) -> Any:
    """The transformers config of a variant."""
    from transformers import AutoConfig

    tiny = ZOO[variant]
    values = copy.deepcopy({**tiny.config, **overrides})  # composite configs take the configs inside them apart
    return AutoConfig.for_model(tiny.model_type, **values)


def tiny_model(
    variant: str,
    head: str = "AutoModel",
    dtype: torch.dtype = torch.float32,
    attention: str | None = None,
    seed: int = 0,
    **overrides: Any,
) -> nn.Module:
    """A random model in eval mode; biases and norms are random too, so that a wrongly cut one changes the output.

    Without `attention` the model takes SDPA where it can.
    """
    import transformers

    torch.manual_seed(seed)
    auto_class = getattr(transformers, head)
    build = auto_class.from_config if head.startswith("Auto") else auto_class._from_config
    # Products of all experts at once know no float64, and nothing counts their FLOPs.
    kernels = {"attn_implementation": attention, "experts_implementation": "eager"}
    model = build(tiny_config(variant, **overrides), **kernels, dtype=dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
            parameter.copy_(centre + 0.3 * torch.randn(parameter.shape))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
    return model.eval()


def random_plan(anatomy: Anatomy, seed: int = 0, emptied: bool = True) -> Plan:
    """Keep a random part of every group; with `emptied` the first attention and the second feed-forward lose all."""
    generator = torch.Generator().manual_seed(seed)
    plan = Plan.keep_all(anatomy)
    for i, g in enumerate(anatomy.groups):
        count = int(torch.randint(1, g.size + 1, (1,), generator=generator)) if g.size else 0
        if emptied and i in (0, 3):
            count = g.least
        units = torch.randperm(g.size, generator=generator)
        if anatomy.vocabulary and g is anatomy.vocabulary.units:
            units, count = torch.tensor(anatomy.vocabulary.closed(units.tolist())), max(count, g.least)
        plan.kept[g.name] = units[:count].sort().values
    return plan
