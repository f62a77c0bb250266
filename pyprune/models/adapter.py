"""The one adapter: it applies the tables of the families to whatever transformers model it is given."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn

from pyprune.core.anatomy import Adapter, Anatomy, Block, LayerGroup, TokenGroup, VocabularyGroup
from pyprune.core.errors import InputError
from pyprune.core.units import ASKED_AXES, HEAD_DIM_AXES, UnitGroup
from pyprune.models.depth import Depth
from pyprune.models.discovered import PRUNED_FAMILY
from pyprune.models.family import Family, Part, base_path
from pyprune.models.hidden import HIDDEN, hidden_group
from pyprune.models.layer_config import remember_
from pyprune.models.place import Place
from pyprune.models.registry import FAMILIES, family_of
from pyprune.models.sequential import SequentialAdapter
from pyprune.models.stage_widths import note_features_, with_stage_widths
from pyprune.models.tokens import TOKENS, Patches, install_tokens, note_tokens, read_by
from pyprune.models.vocabulary import VOCAB, looks_up_tokens, renumber_, vocabulary_group
from pyprune.models.widths import configs_below, twins, write_widths

# Where a config says which layers of its image encoder are read, by their number.
_LAYERS_READ = ("vision_feature_layer", "vision_feature_layers")


def adapter_for(model_or_config: Any) -> Adapter:
    """The adapter of a transformers model or config.

    A model without a table, for its own type or a model inside it, is looked through first, and what is found is noted
    in its config (`discovery.discover_`, which says when that is an InputError); a config without one is an InputError
    that lists the supported model types. It refuses remote code, and a model whose weights are no longer tied although
    its config says so.

    >>> adapter_for(model).anatomy(model)
    """
    _check_own_code(model_or_config)
    config = getattr(model_or_config, "config", model_or_config)
    if isinstance(model_or_config, nn.Sequential) and config is model_or_config:
        if not hasattr(model_or_config, "positions"):
            raise InputError('Sequential: show it an input first: pyprune.discover(model, {"input": images})')
        return SequentialAdapter()
    if not has_table(config):
        from transformers import PreTrainedModel

        if not isinstance(model_or_config, PreTrainedModel):
            FAMILIES[getattr(config, "model_type", type(model_or_config).__name__)]
        from pyprune.models.discovery import discover_  # which needs this module

        discover_(model_or_config)
    if isinstance(model_or_config, nn.Module):
        _check_tied(model_or_config)
    return TransformersAdapter()


def _check_own_code(model_or_config: Any) -> None:
    kind = type(model_or_config)
    noted = getattr(getattr(model_or_config, "config", None), PRUNED_FAMILY, None)
    if kind.__module__.startswith("transformers_modules.") and not noted:  # where transformers puts what it downloads
        raise InputError(
            f"{kind.__name__} is remote code, whose layers pyprune does not know: load the model without "
            "trust_remote_code, or let pyprune.discover(model) find and prove what can be pruned"
        )


def _check_tied(model: nn.Module) -> None:
    """Raise InputError for weights that the config ties and that are two tensors: reloading would lose one of them."""
    expand = getattr(model, "get_expanded_tied_weights_keys", None)
    parameters = dict(model.named_parameters(remove_duplicate=False)) if expand else {}
    for name, source in (expand(all_submodels=True) if expand else {}).items():
        one, other = parameters.get(name), parameters.get(source)
        if one is not None and other is not None and one is not other:
            raise InputError(
                f"{name} and {source} are tied by the model's config, and are two tensors: "
                "call model.tie_weights(), or set tie_word_embeddings=False in the config to keep both"
            )


class Member(NamedTuple):
    """A transformers model of a known family inside another (or the whole): its path, ending in a dot if not empty.

    `source_tokens` are those that its cross-attention reads, where the whole model tells.
    """

    prefix: str
    model: Any
    family: Family
    source_tokens: float | None = None

    def parts(self, axes: Collection[str] = ()) -> Iterator[tuple[Place, Part]]:
        """Every part of every layer of the member, asked for or not; `axes` are what places know as `asked`."""
        for place, part in self.family.parts(self.model, self.prefix, self.source_tokens):
            yield replace(place, asked=tuple(axes)), part


class Record(NamedTuple):
    """Where a checkpoint notes the widths of `groups`: a config (and copies of it), in which names lose `prefix`."""

    configs: tuple[Any, ...]
    prefix: str
    family: Family
    groups: list[UnitGroup]


class TransformersAdapter:
    """Implements `core.anatomy.Adapter` for every model whose type, or the types of whose members, have a table."""

    def anatomy(self, model: nn.Module, axes: Sequence[str] | None = None) -> Anatomy:
        """Blocks and unit groups of `model` as it stands now, a pruned model included.

        `model` is the bare model or any of its task models. Groups of `core.units.ASKED_AXES` are there for those
        that `axes` names. InputError when its config asks for something that cannot be pruned exactly, when its modules
        are not those of the family, and for an axis that the model does not have.
        """
        layers: dict[str, bool] = {}
        blocks: list[Block] = []
        stack = ""
        for member in members(model):
            for place, part in member.parts(axes or ()):
                if part.asked and part.asked not in (axes or ()):
                    continue
                if blocks and place.stack != stack:  # what lies between two stacks belongs to neither
                    blocks[-1] = replace(blocks[-1], exit=None)
                stack = place.stack
                layers[place.path] = place.pair
                blocks.append(part.block(place))
        if not blocks:
            raise InputError(
                f"{type(model).__name__} holds no layers of a known family: "
                "give the transformers model itself, not a wrapper of it"
            )
        pairs = frozenset(path for path, pair in layers.items() if pair)
        anatomy = Anatomy(model.config.model_type, tuple(layers), tuple(blocks), pairs)
        return _with_axes(model, anatomy, axes) if axes else anatomy

    def resized(self, model: nn.Module, anatomy: Anatomy, kept: Mapping[str, torch.Tensor]) -> None:
        """Bring derived attributes, emptied blocks and the config in line after the weights were cut."""
        family = family_of(model.config)
        narrowed = anatomy.hidden and len(kept[HIDDEN]) < anatomy.hidden.units.size
        for group in anatomy.all_groups:
            # A module that lost nothing remembers what it did, unless it computes a head's size from the hidden width.
            if len(kept[group.name]) == group.size and not (narrowed and group.axis not in HEAD_DIM_AXES):
                continue
            for attribute in group.attributes:
                module = model.get_submodule(attribute.module)
                remember_(module, attribute.name, attribute.value(len(kept[group.name])))
        before = {group.name: group for group in anatomy.all_groups}
        sizes = {name: len(units) for name, units in kept.items()}
        axes = {group.axis for group in anatomy.groups}
        for member in members(model):
            for place, part in member.parts(axes):
                if part.asked and part.asked not in axes:
                    continue
                name = part.block(place).units.name
                if name not in before:
                    continue
                if sizes[name] < before[name].size:
                    part.cut(place, kept[name])
                if sizes[name] == 0:
                    part.emptied(place)
        for record in records(model, asked=axes):
            noted = [group for group in record.groups if group.name in before]
            groups = [replace(before[group.name], config_key=group.config_key) for group in noted]
            if not record.prefix:
                groups += [width.units for width in anatomy.widths]
            for config in record.configs:
                write_widths(config, record.family, record.prefix, groups, sizes)
        for width in anatomy.widths:
            for path in width.norms:
                norm: Any = model.get_submodule(path)
                if hasattr(norm, "normalized_shape"):
                    norm.normalized_shape = (sizes[width.units.name],)
        if anatomy.stage_widths and hasattr(model, "num_features"):
            note_features_(model, family.stage_widths(model))
        if anatomy.token_groups:
            seen = anatomy.tokens_seen(kept)
            by_layer = {group.layer: seen[group.units.name] for group in anatomy.token_groups}
            for member, _, places in _image_stacks(model):
                for config in configs_of(member, model.config):
                    note_tokens(config, [by_layer[place.path] for place in places])
        if anatomy.vocabulary and sizes[VOCAB] < anatomy.vocabulary.units.size:
            renumber_(model, anatomy.vocabulary.units.size, kept[VOCAB])
        if lost := anatomy.lost_layers(kept):
            for member, depth, places in _deep_stacks(model):
                depth.drop_(model, places, lost, member.prefix, configs_of(member, model.config))
        for member, table, places in _image_stacks(model):
            install_tokens(model, member.model, table, places)


def _with_axes(model: Any, anatomy: Anatomy, axes: Sequence[str]) -> Anatomy:
    """`anatomy` with the groups of those `axes` that belong to no block; InputError when the model lacks one."""
    known = {group.axis for group in anatomy.groups} | set(_asked_axes(model))
    for axis in axes:
        if axis not in known:
            raise InputError(f"axis {axis!r}: the model has {', '.join(sorted(known))}")
    layer_groups: list[LayerGroup] = []
    for member, depth, places in _deep_stacks(model) if "layers" in axes else ():
        _check_depth(model, member, depth)
        layer_groups += depth.groups(places, member.prefix + base_path(member.model))
    token_groups: list[TokenGroup] = []
    for member, table, places in _image_stacks(model) if TOKENS in axes else ():
        table.check(model, member.model)
        token_groups += table.groups(places, member.model.config)
    hidden = None
    if HIDDEN in axes:
        family = family_of(model.config)
        if family and family.stage_widths:
            anatomy = with_stage_widths(model, anatomy, family.stage_widths(model))
        else:
            hidden = hidden_group(model, anatomy)
    vocabulary = _vocabulary(model, anatomy) if VOCAB in axes else None
    if hidden and vocabulary:
        widths = {model.get_submodule(path).embedding_dim for path in vocabulary.embeddings}
        if widths != {hidden.units.size}:
            raise InputError(
                f"axes {HIDDEN!r} and {VOCAB!r}: this model's embeddings have another width; prune one by one"
            )
    blocks = tuple(read_by(anatomy.blocks, token_groups)) if token_groups else anatomy.blocks
    beyond = {"layer_groups": tuple(layer_groups), "token_groups": tuple(token_groups)}
    return replace(anatomy, blocks=blocks, hidden=hidden, vocabulary=vocabulary, **beyond)


def asked_axes(model: nn.Module, together: bool = False) -> dict[str, str]:
    """The axes of `core.units.ASKED_AXES` that `model` has, each with why it cannot be pruned along that one; empty
    when it can. With `together` along all of them at once, those that come first first.

    InputError when nothing in `model` can be pruned.
    """
    adapter = adapter_for(model)
    found: dict[str, str] = {}
    for axis in _asked_axes(model):
        before = [name for name, refusal in found.items() if together and not refusal]
        found[axis] = ""
        try:
            adapter.anatomy(model, [*before, axis])
        except InputError as error:
            found[axis] = str(error)
    return found


def _asked_axes(model: nn.Module) -> Iterator[str]:
    """The axes that the tables of `model` have and that an anatomy must be asked for."""
    parts = [(place.layer, part) for member in members(model) for place, part in member.parts()]
    asked = {axis for layer, part in parts for axis in part.asked_axes(layer)}
    yield from (axis for axis in ASKED_AXES if axis in asked)
    if next(_deep_stacks(model), None) is not None:
        yield "layers"
    found = list(members(model))
    if len(found) == 1 and not found[0].prefix and (found[0].family.hidden or found[0].family.stage_widths):
        yield HIDDEN
    if next(_image_stacks(model), None) is not None:
        yield TOKENS
    if looks_up_tokens(model):
        yield VOCAB


def _vocabulary(model: Any, anatomy: Anatomy) -> VocabularyGroup:
    """InputError for a model that is made of several, and for one that reads more in a token's number."""
    found = list(members(model))
    refused = [member.family for member in found if not member.family.vocabulary]
    reason = "it finds the end of a text by the numbers of its tokens" if refused else ""
    if len(found) > 1 or found[0].prefix:
        reason = "it is made of several models"
    if reason:
        raise InputError(f"axis {VOCAB!r} of {type(model).__name__}: {reason}")
    return vocabulary_group(model, anatomy)


def _deep_stacks(model: nn.Module) -> Iterator[tuple[Member, Depth, list[Place]]]:
    """The stacks of `model` of which layers can be left out."""
    counted = any(getattr(model.config, name, None) is not None for name in _LAYERS_READ)
    for member in members(model):
        for stack in member.family.stacks:
            if counted and stack.patches:
                continue
            if stack.depth and (places := list(stack.find(member.model, member.prefix))):
                yield member, stack.depth, places


def _image_stacks(model: nn.Module) -> Iterator[tuple[Member, Patches, list[Place]]]:
    """The stacks of `model` whose layers may see fewer patches of an image than it has."""
    for member in members(model):
        for stack in member.family.stacks:
            if stack.patches and (places := list(stack.find(member.model, member.prefix))):
                yield member, stack.patches, places


def _check_depth(model: Any, member: Member, depth: Depth) -> None:
    """InputError when the config of `member` cannot say that it lost layers."""
    reason = depth.refuses(member.model.config) if depth.refuses else ""
    own = configs_of(member, model.config)
    others = [other for other in members(model) if other.prefix != member.prefix]
    if any(a is b for other in others for a in configs_of(other, model.config) for b in own):
        reason = f"one config describes {member.prefix[:-1]} and {others[0].prefix[:-1]}"
    if reason:
        raise InputError(f"axis 'layers' of {type(member.model).__name__}: {reason}")


def members(model: nn.Module) -> Iterator[Member]:
    """Transformers models in `model`, itself included, that hold layers of a known family; the inner ones come first,
    since they feed the outer.

    Parts of one that share its type are not told apart from it.
    """
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        return
    found: list[Member] = []
    for path, module in model.named_modules():
        family = family_of(module.config) if isinstance(module, PreTrainedModel) else None
        if family is None:
            continue
        model_type = module.config.model_type
        prefix = f"{path}." if path else ""
        if any(model_type == o.model.config.model_type and prefix.startswith(o.prefix) for o in found):
            continue
        member = Member(prefix, module, family, _source_tokens(model, prefix))
        if next(member.parts(), None) is not None:
            found.append(member)
    yield from sorted(found, key=lambda member: member.prefix.count("."), reverse=True)


def _source_tokens(model: Any, prefix: str) -> float | None:
    family = family_of(model.config)
    tell = None if family is None else family.source_tokens
    return None if tell is None else tell(model, prefix)


def configs_of(member: Member, root: Any) -> tuple[Any, ...]:
    """Every config that describes `member`: its own first, and those inside `root`, the config of the whole model."""
    own = member.model.config
    inside = twins(root, own.model_type, member.prefix) if member.prefix else []
    return (own, *(config for config in inside if config is not own))


def records(model: nn.Module, axes: Sequence[str] = (), asked: Collection[str] | None = None) -> list[Record]:
    """The configs that note the widths of the groups of `model`, as it stands now; `axes` as in `Member.parts`.

    A member's own config notes them, unless several members are built from it: then the config of the whole does, under
    the groups' full names. Of parts that have to be asked for, those of the axes `asked` are there; None: all.
    """
    found = list(members(model))
    configs = [configs_of(member, model.config) for member in found]
    noted: dict[int, Record] = {}
    for member, own in zip(found, configs, strict=True):
        parts = member.parts(axes)
        blocks = [p.block(place) for place, p in parts if asked is None or not p.asked or p.asked in asked]
        groups = [units for b in blocks for units in (b.units, *((b.shared.units,) if b.shared else ()))]
        record = Record(own, member.prefix, member.family, groups)
        if sum(any(a is b for a in own for b in others) for others in configs) > 1:
            groups = [replace(group, config_key="") for group in groups]
            record = Record((model.config,), "", FAMILIES[model.config.model_type], groups)
        noted.setdefault(id(record.configs[0]), record._replace(groups=[])).groups.extend(groups)
    return list(noted.values())


def has_table(config: Any) -> bool:
    """Whether there is a table for `config` or for one inside it."""
    return any(family_of(c) is not None for c in (config, *(below for _, below in configs_below(config))))
