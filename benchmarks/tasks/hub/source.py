"""The seam to the outside: rows and models of a hub, and in one line why they cannot be had."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from benchmarks.tasks.task import DataError

_TIMEOUT_S = 5
# Rows among which a stream is shuffled, besides the order of its files.
_BUFFER = 1000


def revision_of(dataset: str, branch: str | None = None) -> str:
    """The commit at which the hub has `dataset`. DataError without the package `datasets`, the hub or the data set."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

    if importlib.util.find_spec("datasets") is None:
        raise DataError("--hub needs the package datasets: pip install datasets")
    try:
        return str(HfApi().dataset_info(dataset, revision=branch, timeout=_TIMEOUT_S).sha)
    except HfHubHTTPError as error:
        raise _not_to_be_had(dataset, error) from None
    except (HTTPError, OfflineModeIsEnabled) as error:
        raise DataError(f"--hub: no hub can be reached for {dataset} ({_line(error)})") from None


def load_rows(
    dataset: str,
    config: str | None,
    split: str,
    columns: Sequence[str],
    revision: str | None = None,
    seed: int | None = None,
) -> Iterator[dict[str, Any]]:
    """Rows of a split (or of files, where `split` is a pattern of paths) with these columns alone, as a stream.

    With a `seed` they are shuffled. Nothing is kept on disk. DataError when they cannot be had, or have other columns.
    """
    from datasets import load_dataset
    from huggingface_hub.errors import HTTPError

    where = {"data_files": {"train": split}, "split": "train"} if "/" in split else {"name": config, "split": split}
    try:
        found = load_dataset(dataset, **where, revision=revision, streaming=True)
        there = found.column_names or list(next(iter(found), {}))
        if missing := [name for name in columns if name not in there]:
            raise DataError(f"{dataset}: no columns {', '.join(missing)}; there are {', '.join(there)}")
        found = found.select_columns(list(columns))
        yield from found if seed is None else found.shuffle(seed=seed, buffer_size=_BUFFER)
    except (OSError, ValueError, ImportError, HTTPError) as error:  # images need pillow
        raise _not_to_be_had(dataset, error) from error


def from_pretrained(name: str, dtype: str) -> tuple[nn.Module, Any]:
    """The model as the class that its config names, in eval mode, and its processor or tokenizer. Raises DataError."""
    import transformers
    from huggingface_hub.errors import HTTPError

    try:
        config = transformers.AutoConfig.from_pretrained(name)
        kind = getattr(transformers, (config.architectures or [""])[0], None)
        if kind is None:
            raise DataError(f"--model {name}: its config names no class of transformers ({config.architectures})")
        return kind.from_pretrained(name, dtype=dtype).eval(), transformers.AutoProcessor.from_pretrained(name)
    except (OSError, ValueError, ImportError, HTTPError) as error:
        raise _not_to_be_had(name, error) from error


def _not_to_be_had(name: str, error: Exception) -> DataError:
    if "gated" in str(error).lower():
        return DataError(f"{name} is gated: ask for access on its page, then log in with `hf auth login`")
    return DataError(f"{name} cannot be had: {_line(error)}")


def _line(error: Exception) -> str:
    """The first line that says anything."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
