"""The processors of images and sound that come with a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyprune.core.errors import InputError

_FILES = ("preprocessor_config.json", "processor_config.json")


def load_processor(directory: str | Path) -> Any:
    """What makes the inputs of the model in `directory`: of images or sound, and of text with them where it knows both.

    InputError saying which file is missing, or what is wrong with it.
    """
    from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoProcessor

    directory = Path(directory)
    if not any((directory / name).is_file() for name in _FILES):
        raise InputError(
            f"{directory}: {_FILES[0]} is missing, which says how images or sound become inputs; copy it from the "
            "original model, or give rows with tensors by the names of the model's arguments"
        )
    problem: Exception | None = None
    # The whole one wants a tokenizer, which a model of images alone may have come without.
    for kind in (AutoProcessor, AutoImageProcessor, AutoFeatureExtractor):
        try:
            processor = kind.from_pretrained(directory, local_files_only=True)
        except Exception as error:  # whatever a processor's own code makes of a broken file
            problem = problem or error
            continue
        if is_processor(processor):
            return processor
    what = " ".join(f"{type(problem).__name__}: {problem}".split())
    raise InputError(f"{directory}: the processor cannot be read ({what:.200})") from problem


def is_processor(given: Any) -> bool:
    """Whether `given` turns images or sound into tensors, with text or alone; a tokenizer does not."""
    return any(hasattr(given, name) for name in ("image_processor", "feature_extractor", "image_mean", "sampling_rate"))
