"""Calibration data for a model: whatever its forward takes, no longer and no stranger than it takes."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pyprune.capture.collect import frozen
from pyprune.capture.greedy import with_greedy_outputs
from pyprune.capture.outputs import run
from pyprune.core.batches import Samples
from pyprune.core.errors import InputError, PyPruneError
from pyprune.data.files import json_rows
from pyprune.data.passages import python_reference, read_passages, split
from pyprune.data.rows import Reader, gathered, image_files, shuffled
from pyprune.data.tokenize import to_samples
from pyprune.models.adapter import adapter_for
from pyprune.models.inputs import config_with, example_inputs
from pyprune.models.processors import is_processor, load_processor
from pyprune.models.widths import configs_below

# Longer inputs are cut: language models take positions far beyond what calibration profits from.
_MOST_TOKENS = 2048
# What tells that a model does not read text, or not alone, and what to give it.
_IMAGES = "a folder of images, a .jsonl file whose rows have image, or mappings with image or pixel_values"
_BOTH = "a .jsonl file whose rows have image and text, or mappings with image (or pixel_values) and text (or input_ids)"
_SOUND = "mappings with audio (a waveform) or {}"


def most_tokens(model: nn.Module, tokenizer: Any) -> int:
    """The longest sample, in tokens, that the model's positions and its tokenizer take (at most 2,048)."""
    configs = (model.config, *(below for _, below in configs_below(model.config)))
    known = (getattr(config, "max_position_embeddings", None) for config in configs)
    positions = next((found for found in known if found), _MOST_TOKENS)
    # RoBERTa counts positions from its padding index on.
    offset = (getattr(model.config, "pad_token_id", None) or 0) + 1 if model.config.model_type == "roberta" else 0
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    return max(1, min(positions - offset, getattr(tokenizer, "model_max_length", None) or _MOST_TOKENS, _MOST_TOKENS))


def calibration_data(
    model: nn.Module, tokenizer: Any, data: Any = None, samples: int = 512, seed: int = 0, runs: bool = True
) -> tuple[Samples, Samples | None]:
    """Calibration samples and, for files, held-out samples that the calibration does not see.

    `data` None means, for models that read text, the English prose that CPython ships; a path is a text or `.jsonl`
    file or a folder of images; all are split with `seed`. Anything else that `pyprune.data` takes is calibration data
    as a whole, and nothing is held out. `tokenizer` may be a processor; without one of images or sound, that of the
    directory that the model was loaded from is taken. What a model decodes and the data lacks is its own greedy output.
    InputError for data that the model does not run on, unless it is not to go through it (`runs`).
    """
    takes = _arguments(model)
    if not runs or ("input_ids" in takes and "decoder_input_ids" not in takes and not _other(takes)):
        parts = _texts(model, tokenizer, data, samples, seed)
    else:
        parts = _rows(model, tokenizer, data, samples, seed)
    known = None
    for part in parts:  # on a GPU such a token would take the whole process down
        for name in {"input_ids", "decoder_input_ids"} & part.inputs[0].keys():
            known = known or config_with(model.config, "vocab_size").vocab_size
            largest = max(int(row[name].max()) for row in part.inputs)
            if largest >= known:
                raise InputError(
                    f"data: token {largest} is beyond the model's {known}: is the tokenizer another model's?"
                )
    if runs:
        parts = [_completed(model, part) for part in parts]
    return parts[0], parts[1] if len(parts) == 2 else None


def _texts(model: nn.Module, tokenizer: Any, data: Any, samples: int, seed: int) -> list[Samples]:
    """Data of a model that reads one text."""
    length = most_tokens(model, tokenizer)
    if data is None or isinstance(data, (str, Path)):
        passages = python_reference() if data is None else read_passages(data)
        return [to_samples(part, tokenizer, length) for part in split(passages, samples, seed)]
    return [to_samples(data, tokenizer, length)]


def _rows(model: nn.Module, tokenizer: Any, data: Any, samples: int, seed: int) -> list[Samples]:
    """Data of a model that takes more than one text."""
    if isinstance(data, Samples):
        return [data]
    takes = _arguments(model)
    other = _other(takes) or "input_ids" not in takes
    given, folder = data, None
    if isinstance(data, (str, Path)):
        path = Path(data)
        if not path.exists():
            raise InputError(f"data: {path} does not exist; {type(model).__name__} needs {what_to_give(model)}")
        if path.is_dir() and other:
            given = image_files(path)
        elif path.suffix == ".jsonl":
            given, folder = list(json_rows(path).values()), path.parent
        else:
            given = None if other else read_passages(path)
    elif data is None and not other:
        given = python_reference()
    if given is None:
        found = "" if data is None else f", not {str(data)!r}"
        raise InputError(f"data: {type(model).__name__} needs {what_to_give(model)}{found}")
    if isinstance(given, Mapping):
        given = [given]
    if not isinstance(given, Iterable):
        raise InputError(f"data: expected a path or an iterable of rows, found {type(data).__name__}")

    @cache
    def processor() -> Any:
        if is_processor(tokenizer):
            return tokenizer
        directory = getattr(model, "name_or_path", "")
        if not directory or not Path(directory).is_dir():
            raise InputError("data: images and sound need a processor; pass it as tokenizer= (or a model directory)")
        return load_processor(directory)

    texts = getattr(tokenizer, "tokenizer", None) if is_processor(tokenizer) else tokenizer
    reader = Reader(takes, texts, processor, most_tokens(model, texts), _start_token(model))
    if isinstance(data, (str, Path)) or data is None:
        found = reader.samples(shuffled(list(given), seed), 2 * samples, folder)
        halves = split(found, samples, seed)
    else:
        halves = (reader.samples(given),)
    parts = [gathered(half, getattr(texts, "pad_token_id", None) or 0) for half in halves]
    parts[0] = replace(parts[0], truncated=reader.truncated, skipped=tuple(reader.skipped))
    return parts


def _completed(model: nn.Module, samples: Samples) -> Samples:
    """`samples` with what the model decodes; InputError when it does not run on them."""
    given = samples.inputs[0].keys()
    anatomy = adapter_for(model).anatomy(model)
    tokens = next((int(block.units.cost.tokens) for block in anatomy.blocks if block.units.cost.tokens), 1)
    samples = replace(samples, tokens=tokens)
    decoded = "decoder_input_ids" if _decodes(model) else "input_ids"
    try:
        if decoded not in given and decoded in _arguments(model) and model.can_generate():
            samples = with_greedy_outputs(model, samples, decoded)
        with torch.no_grad(), frozen(model):
            run(model, samples.first(1).collate([0]).on(model).inputs)
    except PyPruneError:
        raise
    except (ValueError, TypeError, AttributeError, RuntimeError, IndexError) as error:
        reason = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise InputError(
            f"data: {type(model).__name__} does not run on {', '.join(given)} alone ({reason}); "
            f"give {what_to_give(model)}"
        ) from error
    return samples


def what_to_give(model: nn.Module) -> str:
    """The data that the model's forward wants, in words."""
    takes = _arguments(model)
    if takes & {"pixel_values", "flattened_patches"}:
        return _BOTH if "input_ids" in takes and not model.can_generate() else _IMAGES
    if sound := takes & {"input_features", "input_values"}:
        return _SOUND.format(min(sound))
    texts = [name for name in ("input_ids", "decoder_input_ids") if name in takes]
    return f"mappings with {', '.join(texts) or 'tensors by the names of the arguments of its forward'}"


def _arguments(model: nn.Module) -> frozenset[str]:
    return frozenset(inspect.signature(model.forward).parameters)


def _other(takes: frozenset[str]) -> bool:
    """Whether the model takes what is no text."""
    return bool(takes & {"pixel_values", "flattened_patches", "input_features", "input_values"})


def _decodes(model: nn.Module) -> bool:
    """Whether the model has a decoder that reads text of its own, and can write it."""
    return "decoder_input_ids" in _arguments(model) and model.can_generate()


def _start_token(model: nn.Module) -> int | None:
    """The token that a decoder reads first, for a model that has one of its own."""
    if not _decodes(model):
        return None
    config = model.config
    found = (getattr(config, name, None) for name in ("decoder_start_token_id", "bos_token_id"))
    inside = getattr(config_with(config, "vocab_size"), "bos_token_id", None)
    return next((token for token in (*found, inside) if token is not None), None)


def notices_of(model: nn.Module, tokenizer: Any, calibration: Samples, held_out: Samples | None) -> list[str]:
    """What became of the data, where some of it was cut or left out."""
    cut = calibration.truncated + (held_out.truncated if held_out else 0)
    length = most_tokens(model, tokenizer)
    lines = [f"{cut} samples were longer than {length} tokens and were cut to that"] if cut else []
    return lines + left_out(calibration)


def left_out(samples: Samples) -> list[str]:
    """One line on the files that could not be read, if there were any."""
    first, *others = samples.skipped or ("",)
    more = f" and {len(others)} more files" if others else ""
    return [f"{first}{more} could not be read and were left out"] if first else []


@torch.no_grad()
def why_not_text(model: nn.Module) -> str:
    """Why `model` does not run on text alone; empty when it does.

    A few tokens are tried: whether a model wants decoder inputs besides, its forward does not tell.
    """
    if "input_ids" not in inspect.signature(model.forward).parameters:
        return "it takes no input_ids"
    device = next(model.parameters()).device
    made = example_inputs(model, 1, 4)
    try:
        with frozen(model):
            model(**{name: made[name].to(device) for name in ("input_ids", "attention_mask") if name in made})
    except (ValueError, TypeError, AttributeError, RuntimeError) as error:
        return str(error).strip().split("\n")[0]
    return ""
