"""The public functions: `prune` for the whole job, and its stages alone.

>>> import pyprune
>>> result = pyprune.prune("sentence-transformers/all-MiniLM-L6-v2", {"flops": 0.6}, out="small")
>>> from transformers import AutoModel
>>> model = AutoModel.from_pretrained("small")
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import nn

from pyprune import ops
from pyprune.calibration import calibration_data, left_out, notices_of
from pyprune.core.anatomy import Anatomy
from pyprune.core.batches import Samples
from pyprune.core.budget import Budget
from pyprune.core.errors import InputError
from pyprune.core.limits import floors
from pyprune.core.partial import Partial, check_partial, data_fingerprint, fingerprint
from pyprune.core.plan import Plan
from pyprune.core.scores import Scores
from pyprune.core.stages import Stages
from pyprune.core.units import asked
from pyprune.data.vocabulary import cut_tokenizer, with_tokenizer
from pyprune.formats import FORMATS, Exported
from pyprune.models.adapter import adapter_for
from pyprune.models.card import write_card
from pyprune.models.discovered import found_line
from pyprune.models.discovery import discover_
from pyprune.models.loading import check_model, load, local_directory
from pyprune.models.native import is_native, make_native_, native_groups, native_stages
from pyprune.models.saving import check_output, complete_directory, write_checkpoint
from pyprune.recipes import RECIPES, BlockwiseRecipe, Recipe
from pyprune.recovery.blockwise import Outcome
from pyprune.scoring import (
    check_tuning,
    check_units_tuned,
    coverage,
    planned_blocks,
    scored,
    scores_blocks,
    tokens_alone,
)
from pyprune.search import check_vocabulary, search_jointly, search_vocabulary
from pyprune.search.separable import check_feasible
from pyprune.slicing.slice import slice_
from pyprune.verification import write_reference

DEFAULT_RECIPE = "surgeon"
Deploy = Literal["layers", "uniform"]
T = TypeVar("T")
PLAN_FILE = "pyprune_plan.json"


@dataclass
class Result:
    """What `prune` made: the `pruned` model beside the `dense` one, and how it got there.

    `tokenizer` is the dense model's; the pruned one's, which has lost the same tokens, is `pruned_tokenizer`.
    """

    pruned: nn.Module | None
    dense: nn.Module
    tokenizer: Any
    plan: Plan
    scores: Scores | None
    outcomes: list[Outcome]
    stages: Stages
    calibration: Samples
    held_out: Samples | None
    notices: list[str] = field(default_factory=list)
    pruned_tokenizer: Any = None

    @property
    def anatomy(self) -> Anatomy:
        """Anatomy of the dense model, which the plan refers to."""
        return adapter_for(self.dense).anatomy(self.dense, self.plan.axes)


def _load(model: str | Path | nn.Module, tokenizer: Any, dtype: Any, device: str) -> tuple[nn.Module, Any]:
    if isinstance(model, nn.Module):
        if dtype is not None or device != "auto":
            raise InputError("device and dtype are for models given by name; move or cast the model that is given")
        adapter_for(model)  # before anything else is asked of a model that may be of no supported family
        if not hasattr(model, "config"):
            raise InputError(f"{type(model).__name__}: data goes through transformers models only; use plan and apply")
        check_model(model)
        return model, tokenizer
    loaded, own = load(model, dtype, pick_device(device))
    return loaded, tokenizer or own


def pick_device(device: str) -> str:
    """`auto` is the GPU where there is one, else the CPU; anything else is taken as it is."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def _recipe(recipe: str | Recipe, **settings: Any) -> Recipe:
    if not isinstance(recipe, str):
        if settings:
            raise InputError(f"settings {', '.join(settings)} belong into the recipe object that was given")
        return recipe
    return with_settings(RECIPES[recipe], f"recipe {recipe!r}", settings)


def with_settings(kind: type[T], owner: str, settings: Mapping[str, Any]) -> T:
    """`kind(**settings)`. InputError for what is no setting of it, which says whose it is not, and what there is."""
    known = inspect.signature(kind).parameters
    for name in settings.keys() - known.keys():
        raise InputError(f"{owner} has no setting {name!r}; it has {', '.join(known)}")
    return kind(**settings)


def _scoring_settings(recipe: Recipe) -> dict[str, str]:
    """What scores depend on: the recipe and its settings, but those of the stages that come after."""
    later = ("tuning", "rearrange")
    settings = {
        f.name: str(getattr(recipe, f.name)).removeprefix("torch.") for f in fields(recipe) if f.name not in later
    }
    return {"recipe": recipe.name, **settings}


def discover(model: nn.Module, inputs: Mapping[str, torch.Tensor] | None = None) -> str:
    """Find what can be pruned in a transformers model of a type that has no table; one line that says what.

    `prune`, `score` and `load` do it by themselves on inputs that they make; give `inputs`, the arguments of the
    model's forward, where they cannot. What is found is proved on these, and noted in the model's config. InputError
    when nothing fits, or when the type has a table.
    """
    return discover_(model, inputs)


def score(
    model: str | Path | nn.Module,
    data: Any = None,
    *,
    recipe: str | Recipe = DEFAULT_RECIPE,
    tokenizer: Any = None,
    samples: int = 512,
    axes: Sequence[str] | None = None,
    seed: int = 0,
    device: str = "auto",
    dtype: Any = None,
    quiet: bool = True,
    **settings: Any,
) -> Scores:
    """What every prunable unit of `model` is worth; no labels are needed.

    Units of `core.units.ASKED_AXES` are scored if `axes` names them, the hidden width from weights alone; those of
    `vocab` by how often the data has each token, whatever the recipe (with `axes=["vocab"]` nothing else is scored, and
    no data goes through the model).
    `data` is text, a folder of images, a `.jsonl` file or rows of whatever the model takes (docs/concepts.md).
    `tokenizer` may be a processor; a model from a directory brings its own of both.
    `settings` go to the recipe (with `recipe="kwon"`: `criterion="magnitude"`, `cotangent="labels"`, `draws=4`,
    `tokens="mean"`, ...). Raises InputError for models and data that cannot be used, NumericsError for NaN or Inf.
    """
    chosen = _recipe(recipe, **settings)
    ops.check_choice()
    model, tokenizer = _load(model, tokenizer, dtype, device)
    anatomy = with_tokenizer(adapter_for(model).anatomy(model, axes), tokenizer)
    calibration, _ = calibration_data(model, tokenizer, data, samples, seed, runs=scores_blocks(axes))
    scores = scored(chosen, model, anatomy, calibration, seed, Stages(quiet), axes)
    scores.meta["truncated"] = calibration.truncated
    scores.meta["notices"] = [*scores.meta.get("notices", []), *left_out(calibration)]
    return scores


def plan(
    model: nn.Module,
    scores: Scores,
    budget: Budget | Mapping[str, float | str],
    *,
    recipe: str | Recipe = DEFAULT_RECIPE,
    length: float | None = None,
    floor: int | Mapping[str, int] = 0,
    keep: Sequence[str] = (),
    axes: Sequence[str] | None = None,
    multiple_of: int = 1,
    deploy: Deploy = "layers",
    tokenizer: Any = None,
    **settings: Any,
) -> Plan:
    """Which units stay under `budget` (`{"flops": 0.6}`, `{"params": "7M"}`, or both); cheap, needs no data.

    FLOPs are counted at `length` tokens a sequence, by default the calibration data's mean. `floor` units stay in every
    group (or in those that it names), blocks that a pattern of `keep` fits stay whole (`"encoder.layer.0.*"`), and
    only `axes` lose units (default: heads, neurons and their like; those of `core.units.ASKED_AXES` have to be named,
    here and in `score`; `vocab` wants the `tokenizer`, whose special tokens and alphabet stay). With `multiple_of=64`
    every width is a multiple of 64 channels, or dense. With `deploy="uniform"` all layers of a stack get one shape that
    the family's own config can say, so that the checkpoint loads without pyprune; groups whose width it cannot say stay
    whole.
    Raises BudgetError for budgets that are malformed or infeasible, InputError for patterns and axes that fit nothing.
    """
    anatomy = with_tokenizer(adapter_for(model).anatomy(model, axes), tokenizer)
    counted = scores.mean_length if length is None else float(length)
    least = _floors(model, anatomy, floor, keep, axes, multiple_of, deploy)
    bounds = {"multiple_of": multiple_of, "uniform": deploy == "uniform"}
    return _planned(_recipe(recipe, **settings), scores, anatomy, Budget.parse(budget), counted, least, **bounds)


def _planned(
    chosen: Recipe, scores: Scores, anatomy: Anatomy, budget: Budget, length: float, least: Any, **bounds: Any
) -> Plan:
    """The recipe's plan; with axes that belong to no block, its best over their numbers of units."""
    if not asked(group.axis for group in anatomy.groups):
        return chosen.plan(scores, anatomy, budget, length, floor=least, **bounds)

    def find(remaining: Anatomy, absolute: Budget, floor: dict[str, int]) -> Plan:
        return chosen.plan(scores, remaining, absolute, length, floor=floor, **bounds)

    search = search_vocabulary if anatomy.vocabulary else search_jointly
    return search(scores, anatomy, budget, length, least, find, **bounds)


def _floors(
    model: nn.Module, anatomy: Anatomy, floor: Any, keep: Any, axes: Any, multiple_of: int, deploy: Deploy
) -> Any:
    """Units that stay at least in every group, for the arguments of `plan`."""
    least = floors(anatomy, floor, keep, axes, multiple_of)
    if deploy not in get_args(Deploy):
        raise InputError(f"deploy={deploy!r}: choose one of {', '.join(get_args(Deploy))}")
    if deploy == "uniform":
        native = native_groups(model) | native_stages(model, anatomy)
        # Configs cannot say that a block is absent: one unit of each stays.
        lowest = {g.name: max(least[g.name], min(1, g.size)) if g.name in native else g.size for g in anatomy.groups}
        least |= {g.name: lowest[g.name] for g in anatomy.groups if g.axis not in ("layers", "vocab")}
    return least


def apply(model: nn.Module, plan: Plan, *, inplace: bool = False) -> nn.Module:
    """The smaller dense model of `plan`: a copy, or with `inplace` the given model cut down.

    Where the plan removes tokens, those that stay have new numbers: `pyprune.cut_tokenizer` makes the tokenizer.
    A uniform plan leaves a config that needs no pyprune to load; InputError when it cannot. Raises MismatchError when
    the plan was made for another model.
    """
    adapter = adapter_for(model)
    plan.check(adapter.anatomy(model, plan.axes))
    uniform = plan.meta.get("uniform")
    if uniform and not is_native(model, plan.kept, plan.axes):
        raise InputError(
            f"the plan is called uniform, but {type(model.config).__name__} cannot say its widths: let all layers of "
            'a stack keep as many units, and at least one, or take "uniform" out of its meta'
        )
    pruned = slice_(model if inplace else copy.deepcopy(model), adapter, plan)
    if uniform:
        make_native_(pruned)
    return pruned


def tune(
    model: nn.Module,
    teacher: nn.Module,
    plan: Plan,
    data: Any = None,
    *,
    scores: Scores | None = None,
    recipe: str | Recipe = DEFAULT_RECIPE,
    tokenizer: Any = None,
    samples: int = 512,
    seed: int = 0,
    inplace: bool = False,
    quiet: bool = True,
    **settings: Any,
) -> tuple[nn.Module, list[Outcome]]:
    """Fit the output projections of the pruned `model` to the dense `teacher` (`tuning="refit"` or `"mask"`).

    Works on a copy unless `inplace`. Returns the model and what became of each block. Mask tuning needs `scores`.
    A model that lost tokens numbers them differently from its teacher: InputError; tune it first, by the plan without
    them (`plan.without("vocab")`).
    """
    chosen = _recipe(recipe, **settings)
    if "vocab" in plan.axes and chosen.tuning != "none":
        raise InputError('the plan has a vocabulary: tune by plan.without("vocab"), and cut tokens afterwards')
    check_tuning(chosen, plan.axes)
    student = model if inplace else copy.deepcopy(model)
    calibration, _ = calibration_data(teacher, tokenizer, data, samples, seed)
    adapter = adapter_for(teacher)
    outcomes = chosen.tune(student, teacher, adapter, plan, scores, calibration, Stages(quiet))
    return student, outcomes


def save(
    model: nn.Module,
    out: str | Path,
    *,
    tokenizer: Any = None,
    source: str | Path | None = None,
    plan: Plan | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a checkpoint that plain `AutoModel*.from_pretrained` loads after `import pyprune`; returns its directory.

    `tokenizer` is the dense model's, which loses the tokens that `plan` removes.
    `plan` is stored beside the weights, and so are a model card and small reference inputs and outputs that `verify`
    replays. `source` is what the dense model was loaded from: what its processors and sentence-transformers read is
    copied from there.
    The directory appears complete or not at all. Raises InputError when `out` is not empty, unless `overwrite`.
    """
    if not hasattr(model, "save_pretrained"):
        raise InputError(f"{type(model).__name__} has no config to load it from: save it whole, by torch.save")
    if plan is not None:
        plan.check_made(adapter_for(model).anatomy(model))
    small = tokenizer if plan is None else cut_tokenizer(tokenizer, plan)
    return _write(model, out, small, source, plan, overwrite)


def _write(
    model: nn.Module, out: str | Path, tokenizer: Any, source: str | Path | None, plan: Plan | None, overwrite: bool
) -> Path:
    """`save` with the pruned model's own tokenizer."""
    anatomy = adapter_for(model).anatomy(model)
    origin = None if source is None else local_directory(source)
    with complete_directory(out, overwrite) as folder:
        write_checkpoint(model, tokenizer, folder, origin)
        if plan is not None:
            plan.save(folder / PLAN_FILE)
        write_card(folder, model, anatomy, plan, None if source is None else str(source))
        write_reference(model, folder)
    return Path(out)


def export(
    model: str | Path | nn.Module,
    out: str | Path,
    format: str = "onnx",
    *,
    tokenizer: Any = None,
    device: str = "cpu",
    dtype: Any = None,
    overwrite: bool = False,
) -> Exported:
    """Write `model`, pruned or dense, for others to run, and check that the file gives what the model gives.

    `format` is `onnx`, `torch_export` (a `.pt2` file) or `block_configs` (a directory that serving engines read, for
    LLaMA only). A graph takes any batch and length. What is written appears once it was run and compared: InputError
    when the model or `out` does not suit the format, MismatchError when outputs differ.
    """
    chosen = FORMATS[format]
    chosen.check(Path(out), overwrite)
    if isinstance(model, nn.Module) and device == "cpu":
        device = "auto"  # it stays where it is
    model, tokenizer = _load(model, tokenizer, dtype, device)
    return chosen.write(model, tokenizer, Path(out))


def prune(
    model: str | Path | nn.Module,
    budget: Budget | Mapping[str, float | str] | None = None,
    data: Any = None,
    *,
    recipe: str | Recipe = DEFAULT_RECIPE,
    plan: Plan | str | Path | None = None,
    out: str | Path | None = None,
    tokenizer: Any = None,
    samples: int = 512,
    length: float | None = None,
    floor: int | Mapping[str, int] = 0,
    keep: Sequence[str] = (),
    axes: Sequence[str] | None = None,
    multiple_of: int = 1,
    deploy: Deploy = "layers",
    seed: int = 0,
    device: str = "auto",
    dtype: Any = None,
    overwrite: bool = False,
    resume: bool = False,
    dry_run: bool = False,
    quiet: bool = True,
    **settings: Any,
) -> Result:
    """Prune `model` to `budget` with a little unlabelled `data`, and save it to `out` when that is given.

    `model` is a directory, a hub id or a transformers model (which stays as it is). `data` and `tokenizer` are as in
    `score`. `plan`, a `Plan` or its file, takes the place of scoring and search. Stage results of a run with `out` wait
    in `<out>.partial/`, where `resume` finds them. With `dry_run` the plan is made and nothing is built or written.
    `settings` go to the recipe; with a `plan` only those of its tuning are taken, and none of `length`, `floor`,
    `keep`, `axes`, `multiple_of` and `deploy`, which are those of `pyprune.plan`.
    Raises InputError, BudgetError or NumericsError before anything is written.
    """
    if (budget is None) == (plan is None):
        raise InputError("give a budget or a plan, one of the two")
    if plan is not None:
        bounds = {"floor": floor, "keep": keep, "axes": axes, "multiple_of": multiple_of, "deploy": deploy}
        defaults = inspect.signature(prune).parameters
        changed = {name: value for name, value in bounds.items() if value != defaults[name].default}
        _check_with_plan(length=length, **changed, **settings)
    parsed = None if budget is None else Budget.parse(budget)
    given = Plan.load(plan) if isinstance(plan, (str, Path)) else plan
    chosen = _recipe(recipe, **settings)
    check_tuning(chosen, (axes or ()) if given is None else given.axes)
    ops.check_choice()
    if out is not None and not dry_run:
        check_output(out, overwrite)
        check_partial(out)
    stages = Stages(quiet)

    with stages.stage("load"):
        source = None if isinstance(model, nn.Module) else model
        if source is not None and out is not None and Path(out).resolve() == Path(source).resolve():
            raise InputError(f"out={str(out)!r} is the model itself, which would be lost; choose another directory")
        dense, tokenizer = _load(model, tokenizer, dtype, device)
        adapter = adapter_for(dense)
        anatomy = with_tokenizer(adapter.anatomy(dense, axes if given is None else given.axes), tokenizer)
        runs = scores_blocks(axes) if given is None else not tokens_alone(given)
        if runs:
            check_units_tuned(chosen, anatomy)
        calibration, held_out = calibration_data(dense, tokenizer, data, samples, seed, runs=runs)
    counted = float(calibration.lengths.double().mean() if length is None else length)
    if given is not None:
        given.check(anatomy)
    else:
        least = _floors(dense, anatomy, floor, keep, axes, multiple_of, deploy)
        if not asked(axes):
            check_feasible(parsed, anatomy, counted, least)
        if anatomy.vocabulary is not None:
            check_vocabulary(anatomy, parsed, counted, least)

    partial = None
    if out is not None and not dry_run:
        what = {"model": fingerprint(dense), "data": data_fingerprint(calibration), "seed": seed}
        what |= dict.fromkeys(asked(axes), True)  # they have scores of their own
        what |= {} if scores_blocks(axes) else {"blocks": False}
        partial = Partial(out, what | _scoring_settings(chosen), resume)

    scores = None
    if given is None:
        bounds = {"multiple_of": multiple_of, "uniform": deploy == "uniform"}
        if runs and isinstance(chosen, BlockwiseRecipe):
            with stages.stage("plan"):
                scores, given = planned_blocks(
                    chosen, dense, anatomy, calibration, parsed, counted, least, _planned, seed, stages, **bounds
                )
        else:
            scores = partial.load_scores() if partial else None
            if scores is None:
                with stages.stage("score"):
                    scores = scored(chosen, dense, anatomy, calibration, seed, stages, axes)
                if partial:
                    partial.save_scores(scores)
            with stages.stage("plan"):
                given = _planned(chosen, scores, anatomy, parsed, counted, least, **bounds)
        if partial:
            partial.save_plan(given)
    notices = notices_of(dense, tokenizer, calibration, held_out)
    notices += [discovered] if (discovered := found_line(dense)) else []
    notices += scores.meta.get("notices", []) if scores else []
    result = Result(None, dense, tokenizer, given, scores, [], stages, calibration, held_out, notices)
    if dry_run:
        return result

    with stages.stage("slice"):
        result.pruned_tokenizer = cut_tokenizer(tokenizer, given)
        blocks = given.without("vocab")
        result.pruned = apply(dense, blocks)
    with stages.stage("tune"):
        if not tokens_alone(given):
            result.outcomes = chosen.tune(result.pruned, dense, adapter, blocks, scores, calibration, stages)
        if "vocab" in given.axes:  # last, since the calibration data is in the dense model's tokens
            result.notices += coverage(given, calibration, held_out)
            rest = Plan.keep_all(adapter.anatomy(result.pruned, ["vocab"]), given.length)
            rest.kept["vocab"] = given.kept["vocab"]
            slice_(result.pruned, adapter, rest)
    if out is not None:
        with stages.stage("save"):
            _write(result.pruned, out, result.pruned_tokenizer, source, given, overwrite)
    if partial:
        partial.remove()
    return result


def _check_with_plan(**given: Any) -> None:
    """Raise InputError for what a plan has settled: it would be left out of account."""
    idle = [name for name, value in given.items() if value is not None and name not in ("tuning", "damping")]
    if idle:
        raise InputError(
            f"{', '.join(idle)}: of no account with a plan, which says what stays; leave out one of the two"
        )
