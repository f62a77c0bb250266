"""A block, run alone as its anatomy says, gives what the whole model gives."""

import pytest
import torch

from pyprune.models.adapter import adapter_for
from pyprune.models.inputs import example_inputs
from pyprune.slicing.slice import slice_
from pyprune.testing.models import VARIANTS, random_plan, tiny_model
from pyprune.testing.numerics import ratio


class Reached(Exception):
    """The input of the projection is known: the rest of the layer need not run."""


def context(model, block, hidden, call):
    """Input of the block's projection when `hidden` enters the block."""
    found = []

    def stop(_, args):
        found.append(args[0])
        raise Reached

    handle = model.get_submodule(block.projection).register_forward_pre_hook(stop)
    try:
        if not block.entry:
            args, kwargs = call
            model.get_submodule(block.layer_path)(hidden, *args, **kwargs)
        for path in block.entry:
            hidden = model.get_submodule(path)(hidden)
    except Reached:
        return found[0]
    finally:
        handle.remove()
    return hidden


@torch.no_grad()
@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_replaying_the_blocks_gives_the_hidden_states_of_the_model(variant, pruned):
    model = tiny_model(variant, dtype=torch.float64)
    adapter = adapter_for(model)
    if pruned:
        slice_(model, adapter, random_plan(adapter.anatomy(model)))
    anatomy = adapter.anatomy(model)
    entered, calls, left, handles = {}, {}, {}, []

    def record_call(path):
        def hook(_, args, kwargs):
            entered[path], calls[path] = args[0], (args[1:], kwargs)

        return hook

    for path in anatomy.layers:
        layer = model.get_submodule(path)
        handles.append(layer.register_forward_pre_hook(record_call(path), with_kwargs=True))
        handles.append(layer.register_forward_hook(lambda _, args, output, path=path: left.__setitem__(path, output)))
    model(**example_inputs(model), **({"use_cache": False} if "use_cache" in vars(model.config) else {}))
    assert list(entered) == list(anatomy.layers)
    for handle in handles:
        handle.remove()

    hidden = entered[anatomy.layers[0]]
    for block in anatomy.blocks:
        x = context(model, block, hidden, calls[block.layer_path])
        assert x.shape[-1] == block.units.size * block.units.width
        hidden = hidden + model.get_submodule(block.projection)(x)
        for path in block.exit:
            hidden = model.get_submodule(path)(hidden)
        if block.units.axis == "neurons":
            ratio(hidden, left[block.layer_path])


@pytest.mark.parametrize("variant", VARIANTS)
def test_costs_are_those_of_the_weights(variant):
    model = tiny_model(variant)
    for block in adapter_for(model).anatomy(model).blocks:
        tensors = {cut.tensor for cut in block.units.cuts if cut.tensor.endswith("weight")}
        weights = sum(model.get_parameter(name).numel() for name in tensors)
        assert block.units.cost.params * block.units.size == weights
