"""Retraining of a pruned model on unlabelled data, with all that it needs besides: data, sizes to search, a folder."""

from __future__ import annotations

import copy
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from pyprune.api import PLAN_FILE, apply, pick_device, save, score, with_settings
from pyprune.api import plan as make_plan
from pyprune.calibration import calibration_data
from pyprune.core.anatomy import Anatomy
from pyprune.core.batches import Samples
from pyprune.core.errors import InputError, MismatchError
from pyprune.core.partial import data_fingerprint, fingerprint
from pyprune.core.plan import Plan
from pyprune.core.scores import Scores
from pyprune.core.storage import read_json, write_json
from pyprune.models.adapter import adapter_for
from pyprune.models.loading import load
from pyprune.models.saving import check_output
from pyprune.recovery import retraining
from pyprune.recovery.retraining import Retrained, Retraining

_RUN = "run.json"


def retrain(
    model: nn.Module,
    teacher: nn.Module,
    data: Any = None,
    *,
    tokenizer: Any = None,
    samples: int = 4096,
    scores: Scores | None = None,
    seed: int = 0,
    inplace: bool = False,
    folder: str | Path | None = None,
    quiet: bool = True,
    **settings: Any,
) -> tuple[nn.Module, Retrained]:
    """Train the pruned `model` on what its dense `teacher` says of unlabelled `data`; the model and what was done.

    `settings` are those of `Retraining`: the method `rest` (the default), `lora` or `full`, and so on.
    Works on a copy unless `inplace`. `data` and `tokenizer` are as in `score`. Where `rest` searches its break-point,
    other sizes are pruned by `scores` of the teacher, which are made anew where they are not given. With a `folder`,
    what is done is kept there, and an interrupted run goes on from it; it may be deleted afterwards.
    A run whose loss is no longer finite stops, keeps its last good state, and says so in `stopped`.
    InputError for settings, data and models that do not fit; MismatchError for a folder of another run.
    """
    chosen = with_settings(Retraining, "retrain", settings)
    sizes = [_vocabulary(own) for own in (model, teacher)]
    if sizes[0] != sizes[1]:
        raise InputError(
            f"the model has {sizes[0]} tokens and its teacher {sizes[1]}: retrain first, and cut the vocabulary last"
        )
    student = model if inplace else copy.deepcopy(model)
    calibration, _ = calibration_data(teacher, tokenizer, data, samples, seed)
    where = None if folder is None else Path(folder)
    if where is not None:
        _open(where, student, teacher, calibration, {**asdict(chosen), "seed": seed})

    def pruned_to(size: float) -> nn.Module:
        nonlocal scores
        scores = scores or score(teacher, calibration.first(512), recipe="lfpr", seed=seed)
        return apply(teacher, make_plan(teacher, scores, {"params": size}, recipe="lfpr"))

    arguments = (student, teacher, _anatomy, calibration, chosen, pruned_to, seed, where, quiet)
    try:
        return student, retraining.retrain(*arguments)
    except InputError:
        if where is not None and [path.name for path in where.iterdir()] == [_RUN]:  # nothing was done
            shutil.rmtree(where)
        raise


def retrain_checkpoint(
    pruned: str | Path,
    dense: str | Path,
    out: str | Path,
    data: Any = None,
    *,
    device: str = "auto",
    dtype: Any = None,
    overwrite: bool = False,
    resume: bool = False,
    quiet: bool = True,
    **settings: Any,
) -> Retrained:
    """`retrain` a checkpoint on disk, and write what comes of it to `out`, with the plan and the processors.

    An interrupted run leaves `<out>.partial/`, where `resume` goes on; without it the run starts anew.
    """
    check_output(out, overwrite)
    student, tokenizer = load(pruned, dtype, pick_device(device))
    teacher, _ = load(dense, dtype, pick_device(device))
    folder = Path(f"{Path(out)}.partial")
    if not resume and (folder / _RUN).exists():
        shutil.rmtree(folder)
    common = {"tokenizer": tokenizer, "folder": folder, "inplace": True, "quiet": quiet}
    _, done = retrain(student, teacher, data, **common, **settings)
    made = Path(pruned) / PLAN_FILE
    plan = Plan.load(made) if made.exists() else None
    save(student, out, tokenizer=tokenizer, source=dense, plan=plan, overwrite=overwrite)
    shutil.rmtree(folder)
    return done


def _vocabulary(model: nn.Module) -> int | None:
    try:
        return getattr(model.get_input_embeddings(), "num_embeddings", None)
    except (AttributeError, NotImplementedError):  # what a model without text says
        return None


def _anatomy(model: nn.Module) -> Anatomy:
    return adapter_for(model).anatomy(model)


def _open(folder: Path, student: nn.Module, teacher: nn.Module, samples: Samples, settings: dict[str, Any]) -> None:
    """Make the folder, or see that it is of this run. MismatchError if not, InputError for another sort of folder."""
    own = {"model": fingerprint(student), "teacher": fingerprint(teacher), "data": data_fingerprint(samples)} | settings
    file = folder / _RUN
    if not file.exists():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"folder={str(folder)!r} is not empty and holds no retraining: choose another")
        folder.mkdir(parents=True, exist_ok=True)
        write_json(file, own)
    elif (found := read_json(file)) != own:
        odd = next(name for name in own if found.get(name) != own[name])
        raise MismatchError(f"{folder} holds a run with another {odd} ({found.get(odd)}): choose another folder")
