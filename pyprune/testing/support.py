"""docs/models.md: what pruning can do with every model type and axis, found by trying it on the whole zoo.

`make models-table` runs everything and writes the page.
"""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pyprune.api import apply
from pyprune.capture.masking import masked
from pyprune.core.anatomy import Anatomy
from pyprune.core.plan import Plan
from pyprune.models.adapter import adapter_for
from pyprune.models.inputs import example_inputs
from pyprune.models.native import native_groups
from pyprune.slicing.check import max_difference
from pyprune.testing.models import heads, random_plan, tiny_model
from pyprune.testing.zoo import ZOO

_ROUNDING = 1e-10  # float64

_PAGE = """# Models

Written by `make models-table`, which prunes a tiny random model of every row along its axis alone, and tries:

- **exact**: the sliced model gives what the dense model with masks gives, to rounding in float64;
- **reload**: saved, and loaded by `from_pretrained` in another process after `import pyprune`, it gives the same bits;
- **uniform**: with one width for all layers, it is loaded by transformers alone, and gives the same bits. "no": the
  family's config cannot say such a width, and `--deploy uniform` leaves these units whole.

Axes are explained in [concepts](concepts.md#anatomy-blocks-units). Some options of a family change a verdict: then it
names the tiny models of `pyprune/testing/zoo` that fail.

Your own model may have other options: `pyprune verify MODEL` proves the first two for it, and is the first thing to
run. [Another family](howto/add-a-model.md) is a table of some twenty lines.

"""


@dataclass(frozen=True)
class Case:
    """A model of the zoo and the axis along which it is pruned."""

    variant: str
    axis: str

    @property
    def model_type(self) -> str:
        return ZOO[self.variant].model_type

    @property
    def row(self) -> tuple[str, str]:
        """Model type and axis, which a row of the table begins with."""
        return self.model_type, self.axis

    def dense(self) -> nn.Module:
        return tiny_model(self.variant, heads(self.variant)[0], torch.float64)

    def plan(self, anatomy: Anatomy, uniform: bool = False) -> Plan:
        """Half of the units of the axis, or another random part of every group."""
        drawn = random_plan(anatomy, seed=5, emptied=False)
        plan = Plan.keep_all(anatomy)
        for group in anatomy.groups:
            if group.axis == self.axis:
                half = torch.arange((group.size + 1) // 2)
                plan.kept[group.name] = half if uniform else drawn.kept[group.name][: max(1, group.size - 1)]
        plan.meta["uniform"] = uniform
        return plan

    def pruned(self, uniform: bool = False) -> nn.Module:
        dense = self.dense()
        return apply(dense, self.plan(adapter_for(dense).anatomy(dense), uniform), inplace=True)


def cases() -> list[Case]:
    """Every model of the zoo with every axis that it has."""
    found = []
    for variant in ZOO:
        model = tiny_model(variant, heads(variant)[0])
        axes = dict.fromkeys(group.axis for group in adapter_for(model).anatomy(model).groups)
        found += [Case(variant, axis) for axis in axes]
    return found


def exact(cases: list[Case], folder: Path) -> Iterator[bool]:
    """Masked = sliced."""
    for case in cases:
        dense, sliced = case.dense(), case.pruned()
        anatomy = adapter_for(dense).anatomy(dense)
        inputs = _inputs(dense)
        with masked(dense, anatomy, case.plan(anatomy)):
            expected = _outputs(dense, inputs)
        yield max_difference(expected, _outputs(sliced, inputs)) < _ROUNDING


def reload(cases: list[Case], folder: Path) -> Iterator[bool]:
    """Sliced = loaded by a process that imports pyprune."""
    for number, case in enumerate(cases):
        _save(case.pruned(), folder / str(number))
    same = _child("import pyprune", folder)
    yield from (same[str(number)] for number in range(len(cases)))


def uniform(cases: list[Case], folder: Path) -> Iterator[bool]:
    """Sliced to one width = loaded by a process that does not import pyprune."""
    for number, case in enumerate(cases):
        dense = case.dense()
        groups = {group.name for group in adapter_for(dense).anatomy(dense).groups if group.axis == case.axis}
        if groups <= native_groups(dense):
            _save(case.pruned(uniform=True), folder / str(number))
    same = _child("", folder)
    yield from (same.get(str(number), False) for number in range(len(cases)))


# One column of the table each: takes all cases and an empty folder, and gives a verdict for every case.
COLUMNS: dict[str, Callable[[list[Case], Path], Iterator[bool]]] = {
    "exact": exact,
    "reload": reload,
    "uniform": uniform,
}


def table(cases: list[Case], verdicts: dict[str, list[bool]]) -> str:
    """The rows of the page, from a verdict for every case in every column."""
    lines = [f"| model type | axis | {' | '.join(verdicts)} |", "|---" * (2 + len(verdicts)) + "|"]
    for row in sorted({case.row for case in cases}):
        cells = []
        for found in verdicts.values():
            mine = {case.variant: good for case, good in zip(cases, found, strict=True) if case.row == row}
            failed = [variant for variant, good in mine.items() if not good]
            cells.append("no" if len(failed) == len(mine) else f"not {', '.join(failed)}" if failed else "yes")
        lines.append(f"| `{row[0]}` | {row[1]} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def rows(page: str) -> set[tuple[str, str]]:
    """Model types and axes that the text of a page lists."""
    cells = (line.split("|")[1:3] for line in page.splitlines() if line.startswith("| `"))
    return {(model_type.strip(" `"), axis.strip()) for model_type, axis in cells}


def write(path: Path) -> None:
    """Try everything, and write the page."""
    found = cases()
    verdicts = {}
    for name, column in COLUMNS.items():
        with tempfile.TemporaryDirectory() as folder:
            verdicts[name] = list(column(found, Path(folder)))
    path.write_text(_PAGE + table(found, verdicts), encoding="utf-8")


def _inputs(model: Any) -> dict[str, torch.Tensor]:
    return {k: v.to(model.dtype) if v.is_floating_point() else v for k, v in example_inputs(model).items()}


@torch.no_grad()
def _outputs(model: Any, inputs: dict[str, torch.Tensor]) -> Any:
    cached = {"use_cache": False} if "use_cache" in vars(model.config) else {}
    torch.manual_seed(0)  # ViLT shuffles the patches of an image
    return model(**inputs, **cached)


def _flat(value: Any) -> list[torch.Tensor]:
    """Tensors of an output, those inside tuples included."""
    if isinstance(value, torch.Tensor):
        return [value]
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else ()
    return [tensor for item in inside for tensor in _flat(item)]


def _save(model: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    inputs = _inputs(model)
    torch.save((type(model).__name__, inputs, _flat(_outputs(model, inputs))), folder / "expected.pt")


_LOAD = f"""
import json, sys
from pathlib import Path
from typing import Any
import torch, transformers

{inspect.getsource(_outputs)}
{inspect.getsource(_flat)}
torch.set_num_threads(1)
for folder in sorted(Path(sys.argv[1]).iterdir()):
    name, inputs, expected = torch.load(folder / "expected.pt")
    options = dict(dtype="auto", experts_implementation="eager", output_loading_info=True)
    model, info = getattr(transformers, name).from_pretrained(folder, **options)
    for parameter in model.parameters():  # where a file left them aligned otherwise, products are rounded otherwise
        parameter.data = parameter.data.clone()
    found = _flat(_outputs(model.eval(), inputs))
    same = 0 < len(found) == len(expected) and all(map(torch.equal, found, expected))
    print(json.dumps([folder.name, same and not any(info.values())]))
"""


def _child(first: str, folder: Path) -> dict[str, bool]:
    """Whether each checkpoint in `folder` gives its outputs in a new process, which runs `first` before all else."""
    command = [sys.executable, "-c", first + _LOAD, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith("["))


if __name__ == "__main__":
    torch.set_num_threads(1)
    write(Path(sys.argv[1]))
