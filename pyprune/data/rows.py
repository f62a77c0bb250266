"""From rows with images, sound, text or ready tensors to samples, by the processor that came with a model."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pyprune.core.batches import Samples
from pyprune.core.errors import InputError
from pyprune.data.tokenize import as_label, as_tensor

IMAGE_FILES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
# Dimensions of one sample; with one more, a tensor is a batch.
_DIMENSIONS = {
    "input_ids": 1,
    "decoder_input_ids": 1,
    "pixel_values": 3,
    "input_features": 2,
    "flattened_patches": 2,
}
_IMAGES, _SOUND = {"pixel_values", "flattened_patches"}, {"input_features", "input_values"}
# Whose padding a mask tells: all texts of that side, and patches in a row.
_MASKS = {"attention_mask": "", "decoder_attention_mask": "decoder_"}
_SAMPLING_RATE = 16_000

Row = Mapping[str, Any]
Sample = tuple[dict[str, torch.Tensor], torch.Tensor | None]


@dataclass
class Reader:
    """Makes samples of rows for a model whose forward takes the arguments `takes`.

    `processor()` gives what turns images, sound and text with them into tensors; it is asked for when a row has such.
    Texts are cut to `length` tokens. `start` is the token with which a decoder begins: labels that are a text are what
    it reads behind that. Files that cannot be read are left out, and named in `skipped`.
    """

    takes: frozenset[str]
    tokenizer: Any
    processor: Callable[[], Any]
    length: int
    start: int | None = None
    skipped: list[str] = field(default_factory=list)
    truncated: int = 0

    def samples(self, rows: Iterable[Any], at_most: int | None = None, folder: Path | None = None) -> list[Sample]:
        """The first `at_most` samples of `rows`, files named from `folder` on. InputError when there are none.

        A row is an image, an `(image, label)` pair or a mapping: `image` (a file or a PIL image), `text` or `question`,
        `audio` (a waveform, alone or with its `sampling_rate`), tensors by the names of arguments, and optionally
        `label` or `labels`. A batch of tensors is taken apart.
        """
        found: list[Sample] = []
        reason = ""
        for row in rows:
            if at_most is not None and len(found) >= at_most:
                break
            try:
                found += [self._sample(one, folder) for one in _apart(_mapping(row))]
            except _UnreadableError as error:
                self.skipped.append(error.name)
                reason = reason or f": {error}"
        if not found:
            raise InputError(f"data: no sample could be read{reason}")
        return found

    def _sample(self, row: Row, folder: Path | None) -> Sample:
        inputs = {name: as_tensor(name, value) for name, value in row.items() if name in self.takes | _MASKS.keys()}
        inputs.pop("labels", None)
        text = row.get("text", row.get("question")) if "input_ids" in self.takes - inputs.keys() else None
        if text is not None and not isinstance(text, str):
            raise InputError(f"data: the text of a row must be one string, found {text!r:.40}")
        heard = row.get("audio") if self.takes & _SOUND else None
        if isinstance(heard, (list, tuple, dict)) or hasattr(heard, "shape"):
            inputs |= self._heard(heard, row.get("sampling_rate"))
        image = None
        if row.get("image") is not None and self.takes & _IMAGES and not _IMAGES & inputs.keys():
            image = _opened(row["image"], folder)
        if image is not None:
            inputs |= self._seen(image, text)
        if text is not None and "input_ids" not in inputs:
            inputs["input_ids"] = self._read(text)
        inputs = {name: _typed(t) for name, t in _unpadded(inputs).items() if name in self.takes}
        if not inputs:
            raise InputError(
                f"data: a row has {', '.join(row) or 'nothing'}, and none of image, audio, text, question or "
                f"{', '.join(sorted(self.takes & _DIMENSIONS.keys()))}"
            )
        label = as_label(row.get("labels", row.get("label")))
        if self.start is None or label is None or label.dim() != 1 or "decoder_input_ids" in inputs:
            return inputs, label
        return {**inputs, "decoder_input_ids": torch.cat([torch.tensor([self.start]), label[label >= 0]])}, None

    def _seen(self, image: Any, text: str | None) -> dict[str, torch.Tensor]:
        processor = self.processor()
        both = {"images": image}
        if text is not None and hasattr(processor, "tokenizer"):
            self._read(text, processor.tokenizer)  # counts what is too long
            both |= {"text": text, "truncation": True, "max_length": self.length}
        elif hasattr(processor, "tokenizer"):
            processor = getattr(processor, "image_processor", processor)
        return _first(processor(**both, return_tensors="pt"))

    def _heard(self, audio: Any, sampling_rate: Any) -> dict[str, torch.Tensor]:
        if isinstance(audio, dict):
            audio, sampling_rate = audio.get("array"), audio.get("sampling_rate")
        extractor = getattr(self.processor(), "feature_extractor", self.processor())
        wave = as_tensor("audio", audio).float().numpy()
        try:
            return _first(extractor(wave, sampling_rate=sampling_rate or _SAMPLING_RATE, return_tensors="pt"))
        except ValueError as error:  # another rate than the model's
            raise InputError(f"data: audio: {str(error).strip().splitlines()[0]}") from None

    def _read(self, text: str, tokenizer: Any = None) -> torch.Tensor:
        tokenizer = tokenizer or self.tokenizer
        if tokenizer is None:
            raise InputError("data: texts need a tokenizer; pass tokenizer= (or a model directory that has one)")
        whole = tokenizer(text, truncation=False, verbose=False)["input_ids"]
        self.truncated += len(whole) > self.length
        return torch.tensor(tokenizer(text, truncation=True, max_length=self.length)["input_ids"])


class _UnreadableError(Exception):
    """The file `name` is no image that can be read."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name


def image_files(folder: str | Path) -> list[dict[str, Any]]:
    """Rows for all images below `folder`, by name; InputError when there is none."""
    paths = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in IMAGE_FILES and path.is_file())
    if not paths:
        raise InputError(f"data: {folder} holds no images ({', '.join(IMAGE_FILES)})")
    return [{"image": path} for path in paths]


def shuffled(rows: list[Any], seed: int) -> list[Any]:
    """`rows` in an order that `seed` gives."""
    return random.Random(seed).sample(rows, len(rows))


def _mapping(row: Any) -> Row:
    if isinstance(row, tuple) and len(row) == 2:
        return {"text" if isinstance(row[0], str) else "image": row[0], "label": row[1]}
    if isinstance(row, str):
        return {"text": row}
    if isinstance(row, Path) or hasattr(row, "convert"):
        return {"image": row}
    if not isinstance(row, Mapping):
        raise InputError(f"data: cannot use a row of type {type(row).__name__}; give images or mappings")
    return row


def _apart(row: Row) -> Iterator[Row]:
    """The rows of a batch of tensors, or the one row that there is."""
    for name, dimensions in _DIMENSIONS.items():
        if name in row and as_tensor(name, row[name]).dim() > dimensions:
            for b in range(len(row[name])):
                yield {key: _entry(key, value, b) for key, value in row.items()}
            return
    yield row


def _entry(name: str, values: Any, b: int) -> Any:
    """Entry `b` of a batch; of what is None there is none."""
    try:
        return None if values is None else values[b]
    except (TypeError, IndexError, KeyError):
        raise InputError(f"data: {name} of a batch must have an entry for each sample, found {values!r:.40}") from None


def _unpadded(inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`inputs` without the tokens that their masks call padding."""
    left = dict(inputs)
    for name, side in _MASKS.items():
        texts = [key for key in left if key != name and _is_text(key, left[key]) and _side(key) == side]
        if name in left and texts and all(len(left[key]) == len(left[name]) for key in texts):
            mask = left.pop(name).bool()
            left |= {key: left[key][mask] for key in texts}
    return left


def _typed(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor.long()


def _is_text(name: str, tensor: torch.Tensor) -> bool:
    return name == "flattened_patches" or (tensor.dim() == 1 and not tensor.is_floating_point())


def _side(name: str) -> str:
    return "decoder_" if name.startswith("decoder_") else ""


def _first(batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return {name: torch.as_tensor(value)[0] for name, value in batch.items() if len(value)}


def gathered(samples: list[Sample], pad: int = 0) -> Samples:
    """`samples` with their labels, if they have any."""
    labels = [label for _, label in samples if label is not None]
    return Samples([inputs for inputs, _ in samples], labels or None, {"input_ids": pad, "decoder_input_ids": pad})


def _opened(image: Any, folder: Path | None) -> Any:
    """A PIL image, decoded, the right way up, in RGB of 8 bits."""
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise InputError("data: images need the package pillow: pip install pillow") from None

    if isinstance(image, Mapping):  # as `datasets` stores what it has not decoded
        image = image.get("bytes") or image.get("path")  # the path may name what the bytes were read from
    if isinstance(image, bytes):
        from io import BytesIO

        image = BytesIO(image)
    if isinstance(image, str):
        image = Path(image)
    if isinstance(image, Path):
        image = image if folder is None else folder / image
    try:
        opened = image if hasattr(image, "convert") else Image.open(image)
        opened = ImageOps.exif_transpose(opened)
        if opened.mode.startswith("I;16"):  # which `convert` would clip, not scale
            opened = opened.point(lambda value: value / 257)
        elif opened.mode in ("I", "F"):
            raise ValueError(f"the range of its values (mode {opened.mode}) is not known")
        return opened.convert("RGB")
    except (OSError, SyntaxError, ValueError, AttributeError, Image.DecompressionBombError) as error:
        name = str(image) if isinstance(image, Path) else type(image).__name__
        raise _UnreadableError(name, str(error) or type(error).__name__) from None
