"""Stage results of an unfinished run, beside its output: `<out>.partial/`. `--resume` goes on from them."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pyprune.core.batches import Samples
from pyprune.core.errors import InputError, MismatchError
from pyprune.core.plan import Plan
from pyprune.core.scores import Scores
from pyprune.core.storage import read_json, write_json

_SETTINGS, _SCORES, _PLAN = "settings.json", "scores.safetensors", "plan.json"
# A file is written beside its place first: a kill leaves that.
_FILES = tuple(name + end for name in (_SETTINGS, _SCORES, _PLAN) for end in ("", ".tmp"))


class Partial:
    """The stage results that belong to the output `out`, valid for one set of `settings` (model, data, recipe, seed).

    Without `resume` an older folder is cleared, and so is one that a crash left without its settings. With it, results
    made under other settings are a MismatchError: mixing them in silently would make a checkpoint that nobody asked
    for. InputError when something of that name is there that is no such folder: it is never deleted.
    """

    def __init__(self, out: str | Path, settings: dict[str, Any], resume: bool) -> None:
        self.folder = Path(f"{Path(out)}.partial")  # Path drops the slash that a shell's completion appends
        self.settings = settings
        check_partial(out)
        if not resume or not (self.folder / _SETTINGS).exists():
            self.remove()
            return
        known = read_json(self.folder / _SETTINGS)
        if known != settings:
            odd = sorted(k for k in known.keys() | settings.keys() if known.get(k) != settings.get(k))
            raise MismatchError(
                f"{self.folder} was made with another {odd[0]} ({known.get(odd[0])}); run without --resume"
            )

    def load_scores(self) -> Scores | None:
        path = self.folder / _SCORES
        return Scores.load(path) if path.exists() else None

    def save_scores(self, scores: Scores) -> None:
        scores.save(self._open() / _SCORES)

    def save_plan(self, plan: Plan) -> None:
        plan.save(self._open() / _PLAN)

    def remove(self) -> None:
        """Delete the stage results, and the folder if nothing else is in it: the run is finished, or starts anew."""
        for name in _FILES:
            (self.folder / name).unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()

    def _open(self) -> Path:
        # Made with its first result, so that a run that fails before leaves nothing behind.
        if not self.folder.exists():
            self.folder.mkdir(parents=True)
            write_json(self.folder / _SETTINGS, self.settings)
        return self.folder


def check_partial(out: str | Path) -> None:
    """Raise InputError unless `<out>.partial` is free, or a folder that holds stage results alone."""
    folder = Path(f"{Path(out)}.partial")
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise InputError(f"{folder} is where stage results go, and is no folder: move it, or choose another output")
    if foreign := sorted({p.name for p in folder.glob("*")} - set(_FILES)):
        raise InputError(
            f"{folder} is where stage results go, and {foreign[0]!r} in it is none: move it, or choose another output"
        )


def fingerprint(model: nn.Module) -> str:
    """A short hash of a model's weights: names, shapes, and every tensor's sum and first values (not every byte)."""
    digest = hashlib.sha256()
    for name, p in model.named_parameters():
        flat = p.detach().flatten()
        head = flat[:64].double().cpu().tolist()
        digest.update(repr((name, tuple(p.shape), str(p.dtype), float(flat.double().sum()), head)).encode())
    return digest.hexdigest()[:16]


def data_fingerprint(samples: Samples) -> str:
    """A short hash of samples and their labels."""
    digest = hashlib.sha256()
    for row in samples.inputs:
        for key in sorted(row):
            digest.update(key.encode())
            whole = not row[key].is_floating_point()
            digest.update(row[key].to(torch.int64 if whole else torch.float32).numpy().tobytes())
    for label in samples.labels or ():
        digest.update(label.double().numpy().tobytes())
    return digest.hexdigest()[:16]
