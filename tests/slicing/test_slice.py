"""What slicing does to tensors, on a module small enough to check by hand."""

import pytest
import torch
from torch import nn

from pyprune import ops
from pyprune.core.anatomy import Anatomy, Block
from pyprune.core.errors import InputError, MismatchError
from pyprune.core.plan import Plan
from pyprune.core.units import Cut, UnitCost, UnitGroup
from pyprune.slicing.slice import slice_


class HandMade:
    """Adapter of `Sequential(up, down)` with `units` units of two channels between them."""

    def __init__(self, units=3):
        self.units = units
        self.resized_to = None

    def anatomy(self, model, axes=None):
        cuts = (Cut("0.weight", 0, 2), Cut("0.bias", 0, 2), Cut("1.weight", 1, 2))
        group = UnitGroup("layers.0.neurons", "neurons", 0, self.units, 2, cuts, UnitCost(1))
        return Anatomy("handmade", ("",), (Block("", "1", ("0",), (), group),))

    def resized(self, model, anatomy, kept):
        self.resized_to = {name: len(index) for name, index in kept.items()}


@pytest.fixture
def model():
    up, down = nn.Linear(2, 6), nn.Linear(6, 2)
    with torch.no_grad():
        up.weight.copy_(torch.arange(12.0).view(6, 2))
        up.bias.copy_(torch.arange(6.0))
        down.weight.copy_(torch.arange(12.0).view(2, 6))
        down.bias.copy_(torch.tensor([7.0, 8.0]))
    return nn.Sequential(up, down)


def plan(*kept, size=3):
    return Plan({"layers.0.neurons": torch.tensor(kept, dtype=torch.int64)}, {"layers.0.neurons": size}, 1.0)


def test_units_take_their_rows_columns_and_biases_along(model):
    adapter = HandMade()
    assert slice_(model, adapter, plan(0, 2)) is model
    up, down = model
    assert up.weight.tolist() == [[0, 1], [2, 3], [8, 9], [10, 11]]
    assert up.bias.tolist() == [0, 1, 4, 5]
    assert down.weight.tolist() == [[0, 1, 4, 5], [6, 7, 10, 11]]
    assert down.bias.tolist() == [7, 8]
    assert (up.in_features, up.out_features, down.in_features, down.out_features) == (2, 4, 4, 2)
    assert adapter.resized_to == {"layers.0.neurons": 2}


def test_an_emptied_layer_leaves_the_output_bias(model):
    slice_(model, HandMade(), plan())
    assert model(torch.ones(5, 2)).tolist() == [[7, 8]] * 5


def test_dtype_device_and_requires_grad_are_kept(model):
    model.to(torch.bfloat16)
    model[0].weight.requires_grad_(False)
    slice_(model, HandMade(), plan(1))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert [p.requires_grad for p in model.parameters()] == [False, True, True, True]
    model.to("meta")
    slice_(model, HandMade(units=1), plan(size=1))
    assert model[0].weight.is_meta


def test_sliced_weights_are_contiguous_and_free_the_old_ones(model):
    slice_(model, HandMade(), plan(0))
    for parameter in model.parameters():
        assert parameter.is_contiguous()
        assert parameter.untyped_storage().nbytes() == parameter.numel() * 4


def test_keeping_all_keeps_the_parameters(model):
    before = list(model.parameters())
    slice_(model, HandMade(), plan(0, 1, 2))
    assert all(new is old for new, old in zip(model.parameters(), before, strict=True))


def test_a_plan_of_another_model_is_refused(model):
    with pytest.raises(MismatchError, match=r"layers.0.neurons has 3 units here, 4 in the plan"):
        slice_(model, HandMade(), plan(0, size=4))


def test_a_layer_that_is_not_linear_is_refused_before_anything_is_cut(model):
    class Quantised(nn.Linear):
        pass

    model[1] = Quantised(6, 2)
    weight = model[0].weight
    with pytest.raises(InputError, match=r"1 is a .*Quantised, not a plain layer: prune before quantising"):
        slice_(model, HandMade(), plan(0))
    assert model[0].weight is weight


def test_a_layer_that_loses_inputs_and_outputs(model):
    class Both(HandMade):
        def anatomy(self, model, axes=None):
            first, second = (
                UnitGroup(name, "neurons", 0, size, width, cuts, UnitCost(1))
                for name, size, width, cuts in (
                    ("a", 3, 2, (Cut("0.weight", 0, 2), Cut("0.bias", 0, 2))),
                    ("b", 2, 1, (Cut("0.weight", 1),)),
                )
            )
            blocks = (Block("", "1", ("0",), (), first), Block("", "0", (), (), second))
            return Anatomy("handmade", ("",), blocks)

    kept = {"a": torch.tensor([0, 2]), "b": torch.tensor([1])}
    slice_(model, Both(), Plan(kept, {"a": 3, "b": 2}, 1.0))
    assert model[0].weight.tolist() == [[1], [3], [9], [11]]
    assert model[0].bias.tolist() == [0, 1, 4, 5]
    assert (model[0].in_features, model[0].out_features) == (1, 4)


def test_parameters_of_several_dtypes_are_cut_in_one_call(model, monkeypatch):
    calls, whole = [], ops.gather_compact
    monkeypatch.setattr(ops, "gather_compact", lambda *args: calls.append(args) or whole(*args))
    model[1].bfloat16()
    slice_(model, HandMade(), plan(0, 2))
    assert len(calls) == 1
    assert model[1].weight.tolist() == [[0, 1, 4, 5], [6, 7, 10, 11]]
    assert [p.dtype for p in model.parameters()] == [torch.float32] * 2 + [torch.bfloat16] * 2


def test_little_more_than_the_model_is_held(model, monkeypatch):
    """New tensors replace the old ones a few at a time, so that no second model is ever in memory."""
    calls, whole = [], ops.gather_compact
    monkeypatch.setattr("pyprune.slicing.slice._BYTES_AT_ONCE", 64)
    monkeypatch.setattr(ops, "gather_compact", lambda *args: calls.append(len(args[0])) or whole(*args))
    slice_(model, HandMade(), plan(0, 2))  # weights of 48 bytes, a bias of 24
    assert calls == [1, 1, 1]


def test_tensors_of_more_dimensions_are_cut(model):
    class Tables(HandMade):
        def anatomy(self, model, axes=None):
            groups = (
                UnitGroup("rows", "neurons", 0, 2, 1, (Cut("table", 0), Cut("tall", 1)), UnitCost(1)),
                UnitGroup("pairs", "neurons", 0, 3, 1, (Cut("table", 2, repeats=2, period=3),), UnitCost(1)),
            )
            return Anatomy("handmade", ("",), tuple(Block("", "1", (), (), g) for g in groups))

    model.table = nn.Parameter(torch.arange(24.0).view(2, 2, 6))
    model.register_buffer("tall", torch.arange(8.0).view(2, 2, 2))
    table, tall = model.table.detach().clone(), model.tall.clone()
    kept = {"rows": torch.tensor([1]), "pairs": torch.tensor([0, 2])}
    slice_(model, Tables(), Plan(kept, {"rows": 2, "pairs": 3}, 1.0))
    assert torch.equal(model.table, table[1:][:, :, [0, 2, 3, 5]])
    assert torch.equal(model.tall, tall[:, 1:])
    assert isinstance(model.table, nn.Parameter)


def test_tied_tensors_stay_tied(model):
    model.again = nn.Linear(6, 2)
    model.again.weight = model[1].weight
    slice_(model, HandMade(), plan(0, 2))
    assert model.again.weight is model[1].weight
    assert model.again.in_features == 4


def test_devices_are_cut_apart(model):
    model[1].to("meta")
    slice_(model, HandMade(), plan(0))
    assert model[0].weight.tolist() == [[0, 1], [2, 3]]
    assert model[1].weight.is_meta
    assert model[1].weight.shape == (2, 2)
