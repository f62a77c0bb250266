"""docs/models.md: what pruning can do with every model type and axis, found by trying it on the whole zoo.

`make models-table` runs everything and writes the page.
"""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pyprune.api import apply
from pyprune.capture.masking import masked
from pyprune.core.anatomy import Anatomy
from pyprune.core.errors import InputError, PyPruneError
from pyprune.core.plan import Plan
from pyprune.core.units import asked
from pyprune.formats import FORMATS
from pyprune.models.adapter import adapter_for, asked_axes
from pyprune.models.inputs import example_inputs
from pyprune.models.native import native_groups, native_stages
from pyprune.slicing.check import max_difference
from pyprune.testing.models import heads, random_plan, tiny_model
from pyprune.testing.zoo import ZOO
from pyprune.verification import dense_tokens

_ROUNDING = 1e-10  # float64

_PAGE = """# Models

Written by `make models-table`, which prunes a tiny random model of every row along its axis alone, and tries:

- **exact**: the sliced model gives what the dense model with masks gives, to rounding in float64;
- **reload**: saved, and loaded by `from_pretrained` in another process after `import pyprune`, it gives the same bits;
- **uniform**: with one width for all layers, it is loaded by transformers alone, and gives the same bits (the channels
  inside a stage shrink along with its width);
- **ONNX**: pruned along all its axes at once and written by `pyprune export --onnx`, it gives the same outputs in
  onnxruntime, within rounding, at batches and lengths other than the traced ones;
- **torch.export**: the same by `pyprune export --torch-export`, loaded again by torch.

A dash says no, and its note why. Axes are explained in [concepts](concepts.md#anatomy-blocks-units); `query_heads`,
`qk_dims`, `vo_dims`, `layers`, `hidden`, `tokens` and `vocab` are pruned only if they are named. Some options of a
family change a verdict: then it names the tiny models of `pyprune/testing/zoo` that fail.

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

    def pruned(self, uniform: bool = False) -> nn.Module:
        dense = self.dense()
        return apply(dense, _plan(_anatomy(dense, [self.axis]), [self.axis], uniform), inplace=True)


def cases() -> dict[Case, str]:
    """Every model of the zoo with every axis that it has, and why it cannot be pruned along that one; "" if it can."""
    found = {}
    for variant in ZOO:
        model = tiny_model(variant, heads(variant)[0])
        axes = dict.fromkeys((group.axis for group in adapter_for(model).anatomy(model).groups), "")
        found |= {Case(variant, axis): refusal for axis, refusal in {**axes, **asked_axes(model)}.items()}
    return found


def exact(cases: Sequence[Case], folder: Path) -> Iterator[str]:
    """Masked = sliced."""
    for case in cases:
        dense, sliced = case.dense(), case.pruned()
        anatomy = _anatomy(dense, [case.axis])
        plan = _plan(anatomy, [case.axis])
        inputs = _inputs(sliced)
        with masked(dense, anatomy, plan):
            expected = _outputs(dense, dense_tokens(inputs, plan))
        difference = max_difference(expected, _outputs(sliced, inputs), plan)
        yield "" if difference < _ROUNDING else "the sliced model gives other outputs"


def reload(cases: Sequence[Case], folder: Path) -> Iterator[str]:
    """Sliced = loaded by a process that imports pyprune."""
    for number, case in enumerate(cases):
        _save(case.pruned(), folder / str(number))
    same = _child("import pyprune", folder)
    yield from ("" if same[str(number)] else "the loaded model gives other outputs" for number in range(len(cases)))


def uniform(cases: Sequence[Case], folder: Path) -> Iterator[str]:
    """Sliced to one width = loaded by a process that does not import pyprune."""
    for number, case in enumerate(cases):
        dense = case.dense()
        anatomy = _anatomy(dense, [case.axis])
        groups = {group.name for group in anatomy.groups if group.axis == case.axis}
        if case.axis in ("layers", "vocab") or groups <= native_groups(dense) | native_stages(dense, anatomy):
            with suppress(InputError):  # `--deploy uniform` refuses what the config cannot say
                _save(case.pruned(uniform=True), folder / str(number))
    same = _child("", folder)
    for number in range(len(cases)):
        if str(number) in same:
            yield "" if same[str(number)] else "transformers alone loads another model"
        else:
            yield "the family's config cannot say such a width, and `--deploy uniform` leaves these units whole"


def onnx(cases: Sequence[Case], folder: Path) -> Iterator[str]:
    """Sliced = run by onnxruntime."""
    return _exported(cases, "onnx", folder / "model.onnx")


def torch_export(cases: Sequence[Case], folder: Path) -> Iterator[str]:
    """Sliced = run by torch from a file."""
    return _exported(cases, "torch_export", folder / "model.pt2")


def _exported(cases: Sequence[Case], format: str, file: Path) -> Iterator[str]:
    """Sliced = exported. An axis is tried alone only where all of a model's together fail."""
    for variant, some in groupby(cases, key=lambda case: case.variant):
        axes = [case.axis for case in some]
        failed = _not_exported(variant, axes, format, file)
        for axis in axes:
            yield failed and _not_exported(variant, [axis], format, file)


# One column of the table each: takes all cases and an empty folder, and tells for every case why it fails; "" if not.
COLUMNS: dict[str, Callable[[Sequence[Case], Path], Iterator[str]]] = {
    "exact": exact,
    "reload": reload,
    "uniform": uniform,
    "ONNX": onnx,
    "torch.export": torch_export,
}


def table(verdicts: Mapping[str, Mapping[Case, str]]) -> str:
    """The rows of the page and its notes, from what every column says of every case."""
    lines = [f"| model type | axis | {' | '.join(verdicts)} |", "|---" * (2 + len(verdicts)) + "|"]
    notes: dict[str, str] = {}
    for row in sorted({case.row for found in verdicts.values() for case in found}):
        cells = []
        for found in verdicts.values():
            mine = dict(sorted((case.variant, reason) for case, reason in found.items() if case.row == row))
            failed = {variant: reason for variant, reason in mine.items() if reason}
            marks = [notes.setdefault(reason, f"[^{len(notes) + 1}]") for reason in dict.fromkeys(failed.values())]
            verdict = "–" if len(failed) == len(mine) else f"not {', '.join(failed)}" if failed else "yes"
            cells.append(verdict + " ".join(marks))
        lines.append(f"| `{row[0]}` | {row[1]} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"{mark}: {reason}" for reason, mark in notes.items())]) + "\n"


def rows(page: str) -> set[tuple[str, str]]:
    """Model types and axes that the text of a page lists."""
    cells = (line.split("|")[1:3] for line in page.splitlines() if line.startswith("| `"))
    return {(model_type.strip(" `"), axis.strip()) for model_type, axis in cells}


def try_all(cases: Sequence[Case]) -> dict[str, dict[Case, str]]:
    """What every column says of the cases."""
    torch.set_num_threads(1)  # the models are tiny
    verdicts = {}
    for name, column in COLUMNS.items():
        with tempfile.TemporaryDirectory() as folder:
            verdicts[name] = dict(zip(cases, column(cases, Path(folder)), strict=True))
    return verdicts


def write(path: Path, processes: int = os.cpu_count() or 1) -> None:
    """Try everything, in several processes at once, and write the page."""
    found = cases()
    refused = {case: _in_few_words(refusal) for case, refusal in found.items() if refusal}
    tried = [case for case in found if case not in refused]
    variants = list(dict.fromkeys(case.variant for case in tried))
    shares = [[case for case in tried if case.variant in variants[i::processes]] for i in range(processes)]
    verdicts: dict[str, dict[Case, str]] = {name: dict(refused) for name in COLUMNS}
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        for share in pool.map(try_all, shares):
            for name, column in share.items():
                verdicts[name] |= column
    path.write_text(_PAGE + table(verdicts), encoding="utf-8")


def _anatomy(model: Any, axes: Sequence[str]) -> Anatomy:
    return adapter_for(model).anatomy(model, asked(axes))


def _plan(anatomy: Anatomy, axes: Sequence[str], uniform: bool = False) -> Plan:
    """Half of the units of the axes, or another random part of every group."""
    drawn = random_plan(anatomy, seed=5, emptied=False)
    plan = Plan.keep_all(anatomy)
    along = {name for width in anatomy.stage_widths for name in width.inner if uniform}
    for group in anatomy.groups:
        if group.axis in axes or group.name in along:
            half = torch.arange((group.size + 1) // 2)
            plan.kept[group.name] = half if uniform else drawn.kept[group.name][: max(1, group.size - 1)]
            if group.axis == "tokens":  # that are gone do not come back
                plan.kept[group.name] = torch.arange(group.size - min(group.layer + 1, group.size - 1))
            if anatomy.vocabulary and group.axis == "vocab":
                tokens = anatomy.vocabulary.closed(range(group.size))[: max(len(half), group.least)]
                plan.kept[group.name] = torch.tensor(tokens)
    plan.meta["uniform"] = uniform
    return plan


def _not_exported(variant: str, axes: Sequence[str], format: str, file: Path) -> str:
    """Why the model, pruned along `axes`, cannot be written or run in `format`; empty when it can."""
    model = tiny_model(variant, heads(variant)[0])
    try:
        pruned = apply(model, _plan(_anatomy(model, axes), axes), inplace=True)
        FORMATS[format].write(pruned, None, file)
    except PyPruneError as error:
        return _in_few_words(str(error))
    return ""


def _in_few_words(error: str) -> str:
    """A message without the class that it names first, and without what it adds in brackets."""
    return error.partition(": ")[2].partition(" (")[0] or error


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
    write(Path(sys.argv[1]))
