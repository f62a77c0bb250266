"""A tokenizer that loses tokens: which of them depend on each other, and the smaller one with new numbers.

Works on what the `tokenizers` library saves as `tokenizer.json`. A text of kept tokens is cut as before:

- WordPiece takes the longest piece that there is, and Unigram the best path: what else there was does not matter. (The
  cost of an unknown character in Unigram depends on the worst piece, which is kept.)
- BPE merges step by step, so that a token stays with the tokens on its way, and merges with their result.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pyprune.core.anatomy import Anatomy
from pyprune.core.errors import InputError
from pyprune.core.plan import Plan

_FILE, _CONFIG = "tokenizer.json", "tokenizer_config.json"
_KINDS = ("BPE", "Unigram", "WordLevel", "WordPiece")
_CUT = "_pyprune_cut"


def with_tokenizer(anatomy: Anatomy, tokenizer: Any) -> Anatomy:
    """`anatomy`, whose vocabulary (if there is one) knows what `tokenizer` needs and what its tokens are made of.

    Needed are special and added tokens, the alphabet or bytes that everything is spelled with, and the unknown token.
    Without a tokenizer only what the model's config names is needed. InputError for a tokenizer that cannot be cut.
    """
    if anatomy.vocabulary is None or tokenizer is None:
        return anatomy
    state = _state(tokenizer)
    size = anatomy.vocabulary.units.size
    tokens = _vocabulary(state)
    needed = {token for token in _needed(state, tokens) if token < size} | anatomy.vocabulary.needed
    parts = {token: parts for token, parts in _parts(state, tokens).items() if token < size}
    vocabulary = replace(anatomy.vocabulary, needed=frozenset(needed), parts=parts)
    least = len(vocabulary.closed(()))
    return replace(anatomy, vocabulary=replace(vocabulary, units=replace(vocabulary.units, least=least)))


def cut_tokenizer(tokenizer: Any, plan: Plan) -> Any:
    """The tokenizer of the dense model without the tokens that `plan` removes: a new one, with new numbers.

    The same one when the plan has no vocabulary, or there is no tokenizer. InputError for a plan that leaves a token
    without the ones that it is made of, and for tokenizers that cannot be cut.
    """
    if tokenizer is None or "vocab" not in plan.axes:
        return tokenizer
    if getattr(tokenizer, _CUT, False):
        raise InputError("tokenizer: it has lost its tokens already; give that of the dense model")
    state = _state(tokenizer)
    before = _vocabulary(state)
    kept, size = plan.kept["vocab"].tolist(), plan.sizes["vocab"]
    numbers = {token: number for number, token in enumerate(kept)}
    # What the model has no row for, it has none for afterwards.
    beyond = (token for token in before.values() if token >= size)
    numbers |= {token: token - size + len(kept) for token in beyond}
    _check_complete(state, before, numbers)
    small = _rebuilt(tokenizer, _cut(state, numbers), numbers)
    expected = {text: numbers[token] for text, token in before.items() if token in numbers}
    if small.get_vocab() != expected:
        odd = sorted(t for t in expected.keys() | small.get_vocab() if expected.get(t) != small.get_vocab().get(t))
        raise InputError(f"{type(tokenizer).__name__} cannot be renumbered: it gives {odd[0]!r} another number")
    setattr(small, _CUT, True)
    return small


def _state(tokenizer: Any) -> dict[str, Any]:
    """What is in `tokenizer.json`; InputError for a tokenizer that has none."""
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(
            f"axis 'vocab': {type(tokenizer).__name__} is no fast tokenizer, which tokenizer.json describes"
        )
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    if state["model"]["type"] not in _KINDS:
        raise InputError(f"axis 'vocab': the tokenizer is {state['model']['type']}, not {', '.join(_KINDS)}")
    return state


def _vocabulary(state: Mapping[str, Any]) -> dict[str, int]:
    """Numbers by token, those of added tokens included."""
    return _model_vocabulary(state["model"]) | {added["content"]: added["id"] for added in state["added_tokens"]}


def _model_vocabulary(model: Mapping[str, Any]) -> dict[str, int]:
    if model["type"] == "Unigram":
        return {piece: number for number, (piece, _) in enumerate(model["vocab"])}
    return dict(model["vocab"])


def _needed(state: Mapping[str, Any], tokens: Mapping[str, int]) -> set[int]:
    model = state["model"]
    needed = {added["id"] for added in state["added_tokens"]}
    _each_number(state, lambda token: needed.add(token) or token)
    unknown = model.get("unk_token")
    needed |= {tokens[unknown]} if unknown in tokens else set()
    if model["type"] == "Unigram":
        pieces = model["vocab"]
        needed |= {model["unk_id"]} if model.get("unk_id") is not None else set()
        needed.add(min(range(len(pieces)), key=lambda number: pieces[number][1]))
    if model.get("byte_fallback"):
        needed |= {tokens[name] for byte in range(256) if (name := f"<0x{byte:02X}>") in tokens}
    elif model["type"] == "BPE":
        needed |= {token for text, token in _model_vocabulary(model).items() if len(_symbols(model, text)) == 1}
    return needed


def _symbols(model: Mapping[str, Any], text: str) -> list[str]:
    """What BPE begins with when it spells `text`."""
    suffix, prefix = model.get("end_of_word_suffix") or "", model.get("continuing_subword_prefix") or ""
    body = text.removesuffix(suffix) if len(text) > len(suffix) else text
    inside = bool(prefix) and len(body) > len(prefix) and body.startswith(prefix)
    body = body[len(prefix) :] if inside else body
    symbols = [character if i == 0 and not inside else prefix + character for i, character in enumerate(body)]
    if suffix and text.endswith(suffix) and symbols:
        symbols[-1] += suffix
    return symbols


def _parts(state: Mapping[str, Any], tokens: Mapping[str, int]) -> dict[int, tuple[int, ...]]:
    """The tokens on the way to every token, each behind its own parts.

    For BPE those that it is merged from; one that merges do not lead to has none. For WordPiece and Unigram its
    characters, by which a word that is no longer known as a whole can be spelled.
    """
    model = state["model"]
    if model["type"] == "BPE":
        ranks = _ranks(model)
        found = {token: _merged(model, ranks, tokens, text) for text, token in _model_vocabulary(model).items()}
        return {token: parts for token, parts in found.items() if parts}
    if model["type"] == "WordLevel":
        return {}
    prefix = model.get("continuing_subword_prefix", "")
    parts = {}
    for text, token in _model_vocabulary(model).items():
        inside = bool(prefix) and text.startswith(prefix) and len(text) > len(prefix)
        body = text[len(prefix) :] if inside else text
        names = [character if i == 0 and not inside else prefix + character for i, character in enumerate(body)]
        parts[token] = tuple(dict.fromkeys(tokens[name] for name in names if name in tokens and name != text))
    return parts


def _ranks(model: Mapping[str, Any]) -> dict[tuple[str, str], int]:
    return {(pair[0], pair[1]): rank for rank, pair in enumerate(map(_pair, model["merges"]))}


def _pair(merge: Any) -> list[str]:
    return merge.split(" ") if isinstance(merge, str) else merge


def _merged(
    model: Mapping[str, Any], ranks: Mapping[tuple[str, str], int], tokens: Mapping[str, int], text: str
) -> tuple[int, ...]:
    """What BPE goes through from the symbols of `text` to itself; empty when it does not get there."""
    symbols = _symbols(model, text)
    prefix = len(model.get("continuing_subword_prefix") or "")
    way = dict.fromkeys(symbols)
    while len(symbols) > 1:
        pairs = [(ranks.get(pair), i) for i, pair in enumerate(itertools.pairwise(symbols))]
        known = [pair for pair in pairs if pair[0] is not None]
        if not known:
            return ()
        _, i = min(known)
        symbols[i : i + 2] = [symbols[i] + symbols[i + 1][prefix:]]
        way[symbols[i]] = None
    del way[text]
    return tuple(tokens[symbol] for symbol in way if symbol in tokens)


def _check_complete(state: Mapping[str, Any], tokens: Mapping[str, int], numbers: Mapping[int, int]) -> None:
    """InputError when a token would stay that is needed by the tokenizer or by one that stays, and is not kept."""
    names = {token: text for text, token in tokens.items()}
    for token in sorted(_needed(state, tokens)):
        if token not in numbers:
            raise InputError(f"plan: vocab must keep token {token} ({names.get(token)!r}), which the tokenizer needs")
    if state["model"]["type"] != "BPE":
        return
    for token, parts in _parts(state, tokens).items():
        lost = [part for part in parts if part not in numbers]
        if lost and token in numbers:
            raise InputError(
                f"plan: vocab keeps token {token} ({names[token]!r}) and not {lost[0]} ({names[lost[0]]!r}), which it "
                "is merged from"
            )


def _cut(state: dict[str, Any], numbers: Mapping[int, int]) -> dict[str, Any]:
    """`state` without the tokens that `numbers` lacks, and with the new numbers of the others."""
    model = state["model"]
    if model["type"] == "Unigram":
        model["vocab"] = [piece for number, piece in enumerate(model["vocab"]) if number in numbers]
        if model.get("unk_id") is not None:
            model["unk_id"] = numbers[model["unk_id"]]
    else:
        kept = sorted((numbers[token], text) for text, token in model["vocab"].items() if token in numbers)
        model["vocab"] = {text: number for number, text in kept}
    if model["type"] == "BPE":
        prefix = len(model.get("continuing_subword_prefix") or "")
        pairs = [(merge, _pair(merge)) for merge in model["merges"]]
        left = model["vocab"]
        model["merges"] = [m for m, (a, b) in pairs if a in left and b in left and a + b[prefix:] in left]
    for added in state["added_tokens"]:
        added["id"] = numbers[added["id"]]
    _each_number(state, lambda token: numbers[token])
    return state


def _each_number(state: Mapping[str, Any], new: Callable[[int], int]) -> None:
    """Call `new` with every token's number in padding and post-processors, and put its result there."""
    if state.get("padding"):
        state["padding"]["pad_id"] = new(state["padding"]["pad_id"])
    processor = state.get("post_processor")
    for one in _with_inner(processor) if processor else ():
        for special in one.get("special_tokens", {}).values() if one["type"] == "TemplateProcessing" else ():
            special["ids"] = [new(token) for token in special["ids"]]
        for name in ("sep", "cls"):  # of BERT's and RoBERTa's own
            if isinstance(one.get(name), list):
                one[name] = [one[name][0], new(one[name][1])]


def _with_inner(processor: Mapping[str, Any]) -> Iterable[Any]:
    yield processor
    for inner in processor.get("processors", ()):
        yield from _with_inner(inner)


def _rebuilt(tokenizer: Any, state: Mapping[str, Any], numbers: Mapping[int, int]) -> Any:
    """A tokenizer of the same class from `state`, read from files as users will."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for path in Path(folder).iterdir():  # vocabularies in other formats speak of the dense one
            if path.suffix in (".txt", ".model", ".json") and path.name not in (_FILE, _CONFIG):
                path.unlink()
        (Path(folder) / _FILE).write_text(json.dumps(state, ensure_ascii=False), encoding="utf-8")
        config = json.loads((Path(folder) / _CONFIG).read_text(encoding="utf-8"))
        added = config.get("added_tokens_decoder")
        if added:
            config["added_tokens_decoder"] = {str(numbers[int(token)]): entry for token, entry in added.items()}
        (Path(folder) / _CONFIG).write_text(json.dumps(config, ensure_ascii=False, indent=2), encoding="utf-8")
        return type(tokenizer).from_pretrained(folder)
