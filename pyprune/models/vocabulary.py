"""The vocabulary: rows of embeddings and output heads, and every place that names a token by its number."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from pyprune.core.anatomy import Anatomy, VocabularyGroup
from pyprune.core.errors import InputError
from pyprune.core.layers import is_linear, output_dim
from pyprune.core.units import Cut, UnitCost, UnitGroup
from pyprune.models.discovered import PRUNED_FAMILY
from pyprune.models.widths import configs_below

VOCAB = "vocab"

# Attributes of configs, generation configs and modules that hold token numbers: alone, in lists, or as values of a
# mapping.
_NAMES_TOKENS = re.compile(
    r"(.*_)?(token_ids?|token_index)|padding_idx|(begin_)?suppress_tokens|bad_words_ids|force_words_ids"
    r"|lang_to_id|task_to_id"
)
_PAIRS = "forced_decoder_ids"  # of a position and a token
_BIAS = "sequence_bias"  # pairs of tokens in a row and a number, or a mapping from the former to the latter


def looks_up_tokens(model: Any) -> bool:
    """Whether the input of `model` is tokens."""
    try:
        return isinstance(model.get_input_embeddings(), nn.Embedding)
    except NotImplementedError:
        return False


def vocabulary_group(model: Any, anatomy: Anatomy) -> VocabularyGroup:
    """The vocabulary of `model`: the embeddings and output heads that transformers says it has, and their biases.

    Anything else that has a dimension of that size, a config that says the same number of anything else, and more than
    one vocabulary are refused with an InputError.
    """
    if PRUNED_FAMILY in vars(model.config):
        raise _refused(model, "it has no table, and discovery does not look for a vocabulary")
    size = model.get_input_embeddings().weight.shape[0]
    _check(model, size)
    layers = tuple(f"{path}." for path in anatomy.layers)
    cuts: list[Cut] = []
    embeddings, seen = [], set()
    params = looked_up = 0
    tables, heads = _tables(model)
    for path, module in model.named_modules():
        if isinstance(module, nn.Embedding) and id(module.weight) in tables:
            embeddings.append(path)
        for leaf, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is None or size not in tensor.shape or id(tensor) in seen:
                continue
            seen.add(id(tensor))
            name = f"{path}.{leaf}" if path else leaf
            dims = [dim for dim, length in enumerate(tensor.shape) if length == size]
            if name.startswith(layers) or dims != [_dim(module, leaf, tensor, tables | heads)]:
                raise _refused(model, f"{name} has a dimension of {size} too, which may be another than the vocabulary")
            cuts.append(Cut(name, dims[0]))
            if tensor.dim() == 2 and isinstance(tensor, nn.Parameter):
                params += tensor.shape[1 - dims[0]]
                looked_up += 0 if id(tensor) in heads else tensor.shape[1 - dims[0]]
    needed = frozenset(_needed(model, size))
    cost = UnitCost(params, table_params=looked_up)
    group = UnitGroup(VOCAB, VOCAB, 0, size, 1, tuple(cuts), cost, least=max(1, len(needed)))
    return VocabularyGroup(group, tuple(embeddings), needed)


def renumber_(model: Any, size: int, kept: torch.Tensor) -> None:
    """Give the `kept` of `size` tokens their new numbers wherever the config, the generation config and modules of the
    cut `model` name them."""
    numbers = {int(token): number for number, token in enumerate(kept)}

    def new(token: int) -> int:
        # What lies beyond the vocabulary, in either direction, lies beyond it afterwards.
        return numbers.get(token, token if token < size else token - size + len(kept))

    for config in _configs(model):
        if vars(config).get("vocab_size") == size:
            config.vocab_size = len(kept)
        _renumber_attributes(config, new)
    generation = getattr(model, "generation_config", None)
    if generation is not None:
        _renumber_attributes(generation, new)
    for module in model.modules():
        known = vars(module)
        if type(known.get("vocab_size")) is int and known["vocab_size"] == size:
            module.vocab_size = len(kept)
        for name, value in list(known.items()):
            if type(value) is int and _NAMES_TOKENS.fullmatch(name):
                setattr(module, name, new(value))


def _check(model: Any, size: int) -> None:
    said = [config for config in _configs(model) if vars(config).get("vocab_size") is not None]
    if not said or any(config.vocab_size != size for config in said):
        raise _refused(model, f"its config does not say that it has {size} tokens")
    own = getattr(model.config, "vocab_size", None)
    if len(said) > 1 and own is None:
        raise _refused(model, "it has several vocabularies")
    for config in said:
        for name, value in vars(config).items():
            if type(value) is int and value == size and name != "vocab_size" and not _NAMES_TOKENS.fullmatch(name):
                raise _refused(model, f"{name} is the number of tokens too")


def _configs(model: Any) -> Iterator[Any]:
    """Every config of the whole model and of the models inside it, once: a member is often built from a copy."""
    seen: set[int] = set()
    roots = (model.config, *(m.config for m in model.modules() if hasattr(getattr(m, "config", None), "to_dict")))
    for root in roots:
        for config in (root, *(below for _, below in configs_below(root))):
            if id(config) not in seen:
                seen.add(id(config))
                yield config


def _tables(model: Any) -> tuple[set[int], set[int]]:
    """The weights by which `model` and models inside it look tokens up, and those by which they predict them."""
    tables, heads = set(), set()
    for module in model.modules():
        if hasattr(module, "get_input_embeddings") and looks_up_tokens(module):
            tables.add(id(module.get_input_embeddings().weight))
        head = module.get_output_embeddings() if hasattr(module, "get_output_embeddings") else None
        if is_linear(head):
            heads.add(id(head.weight))
    return tables, heads


def _dim(module: nn.Module, leaf: str, tensor: torch.Tensor, weights: set[int]) -> int:
    """The dimension of a parameter or buffer that may be the vocabulary; -1: none."""
    if isinstance(module, nn.Embedding):
        return 0 if id(tensor) in weights else -1
    if is_linear(module):
        if id(module.weight) not in weights:
            return -1
        return output_dim(module) if leaf == "weight" else 0
    bias = tensor.dim() == 1 or (tensor.dim() == 2 and tensor.shape[0] == 1)
    return tensor.dim() - 1 if bias and not type(module).__module__.startswith("torch.nn") else -1


def _needed(model: Any, size: int) -> set[int]:
    """Tokens that the configs and the embeddings of `model` name."""
    named: set[int] = set()

    def note(token: int) -> int:
        named.add(token)
        return token

    for holder in (*_configs(model), getattr(model, "generation_config", None)):
        if holder is not None:
            _renumber_attributes(holder, note)
    for module in model.modules():
        padding = getattr(module, "padding_idx", None)
        if padding is None:
            continue
        named.add(padding)
        if isinstance(module, nn.Embedding) and module.weight.shape[0] != size:
            named.update(range(padding))  # positions are counted from the padding token's number: it has to stay
    return {token for token in named if 0 <= token < size}


def _renumber_attributes(holder: Any, new: Callable[[int], int]) -> None:
    for name, value in list(vars(holder).items()):
        changed = _renumbered(name, value, new)
        if changed is not None and changed != value:
            setattr(holder, name, changed)


def _renumbered(name: str, value: Any, new: Callable[[int], int]) -> Any:
    """`value` with new token numbers; None when there are none in it."""
    if name == _PAIRS and isinstance(value, (list, tuple)):
        return [[position, None if token is None else new(token)] for position, token in value]
    if name == _BIAS and isinstance(value, dict):
        return {tuple(new(token) for token in tokens): bias for tokens, bias in value.items()}
    if name == _BIAS and isinstance(value, (list, tuple)):
        return [[[new(token) for token in tokens], bias] for tokens, bias in value]
    if _NAMES_TOKENS.fullmatch(name):
        return _mapped(value, new)
    if isinstance(value, dict):  # settings of single tasks
        changes = {key: _renumbered(str(key), item, new) for key, item in value.items()}
        return {key: value[key] if change is None else change for key, change in changes.items()}
    return None


def _mapped(value: Any, new: Callable[[int], int]) -> Any:
    if type(value) is int:
        return new(value)
    if isinstance(value, (list, tuple)):
        return type(value)(_mapped(item, new) for item in value)
    if isinstance(value, dict):
        return {key: _mapped(item, new) for key, item in value.items()}
    if isinstance(value, torch.Tensor) and not value.is_floating_point():
        return torch.tensor([new(int(item)) for item in value.flatten()], device=value.device).view(value.shape)
    return value


def _refused(model: Any, reason: str) -> InputError:
    return InputError(f"axis {VOCAB!r} of {type(model).__name__}: {reason}")
