"""The model card of a pruned checkpoint: what was taken away, and how it loads."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pyprune.core.anatomy import Anatomy
from pyprune.core.plan import Plan
from pyprune.core.units import UnitGroup, group_kind
from pyprune.models.tokens import PRUNED_TOKENS
from pyprune.models.widths import PRUNED_GROUPS, configs_below

CARD_FILE = "README.md"


def needs_pyprune(config: Any) -> bool:
    """Whether a checkpoint of this config loads only after `import pyprune`: its layers differ from the dense ones."""
    configs = (config, *(below for _, below in configs_below(config)))
    return any(
        vars(c).get(PRUNED_GROUPS) or vars(c).get(PRUNED_TOKENS) or getattr(c, "is_heterogeneous", False)
        for c in configs
    )


def write_card(folder: Path, model: Any, anatomy: Anatomy, plan: Plan | None, source: str | None) -> None:
    """Write the card of the pruned `model` beside its weights.

    `anatomy` is the pruned model's. `source` is the name of the dense model, or None; it is named as the base model
    when it is a hub id.
    """
    (folder / CARD_FILE).write_text(card(model, anatomy, plan, source), encoding="utf-8")


def card(model: Any, anatomy: Anatomy, plan: Plan | None, source: str | None) -> str:
    """The text of the card: markdown below the front matter that the hub reads."""
    on_hub = source is not None and not Path(source).exists()
    front = ["---", "library_name: transformers", "tags:", "- pyprune", "- pruned"]
    front += [f"base_model: {source}"] if on_hub else []
    lines = [*front, "---", "", f"# {type(model).__name__}, pruned", ""]
    origin = f" `{source if on_hub else Path(source).name}`" if source else " a dense model"
    lines += [f"Made from{origin} by pyprune {version('pyprune')}: a smaller dense model of the same classes."]
    lines += ["", "## Load it", "", *_loading(model)]
    if plan is not None:
        lines += ["", "## What stayed", "", *_what_stayed(anatomy, plan)]
    return "\n".join(lines) + "\n"


def _loading(model: Any) -> list[str]:
    name = type(model).__name__
    code = [f"from transformers import {name}", "", f'model = {name}.from_pretrained("path/or/id/of/this/checkpoint")']
    if not needs_pyprune(model.config):
        return ["```python", *code, "```"]
    return [
        "```python",
        "import pyprune  # teaches transformers the shapes of its layers",
        *code,
        "```",
        "",
        "Without `import pyprune` transformers refuses the checkpoint, with an error about per-layer attributes or",
        "sizes that do not match: its layers differ in width, which the family's own code does not expect.",
        "One that lost tokens alone has the dense model's weights, and loads as the dense model.",
    ]


def _what_stayed(anatomy: Anatomy, plan: Plan) -> list[str]:
    groups = anatomy.groups
    lines = []
    for name in plan.sizes if plan.axes else ():
        if name.rpartition(".")[2] in plan.axes:
            lines.append(f"- {len(plan.kept[name])} of {plan.sizes[name]} of `{name}`")
    if not {"layers", "hidden"} & set(plan.axes):
        lines += _shares(groups, plan)
    kinds: dict[str, list[UnitGroup]] = defaultdict(list)
    for group in groups:
        kinds[group_kind(group)].append(group)
    lines += ["", "| units | of | kept, layer by layer |", "|---|---|---|"]
    for kind, alike in kinds.items():
        of = sorted({plan.sizes[g.name] for g in alike})
        lines.append(f"| {kind} | {', '.join(map(str, of))} | {', '.join(str(g.size) for g in alike)} |")
    named = [f"{key} {plan.meta[key]}" for key in ("criterion", "cotangent", "samples", "seed") if key in plan.meta]
    if named:
        lines += ["", f"Chosen by: {', '.join(named)}. `pyprune_plan.json` lists every unit that stayed."]
    return lines


def _shares(groups: Sequence[UnitGroup], plan: Plan) -> list[str]:
    lines = []
    for resource, unit in (("FLOPs", lambda g: g.cost.flops(plan.length)), ("weights", lambda g: g.cost.params)):
        dense = sum(unit(g) * plan.sizes[g.name] for g in groups)
        lines.append(f"- {sum(unit(g) * g.size for g in groups) / dense:.1%} of the blocks' {resource}")
    lines[0] += f", counted at {plan.length:.1f} tokens a sequence"
    return lines
