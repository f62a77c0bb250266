import pytest

from pyprune.core.errors import InputError
from pyprune.core.limits import floors, granule
from pyprune.models.adapter import adapter_for
from pyprune.testing.models import tiny_model


@pytest.fixture(scope="module")
def anatomy():
    model = tiny_model("bert", "AutoModelForMaskedLM")
    return adapter_for(model).anatomy(model)


def whole(anatomy, least):
    return {name for name, count in least.items() if count == anatomy.block(name).units.size}


@pytest.mark.parametrize(
    ("pattern", "kept"),
    [
        ("encoder.layer.0.*", {"layers.0.heads", "layers.0.neurons"}),
        ("bert.encoder.layer.0.*", {"layers.0.heads", "layers.0.neurons"}),
        ("layers.1.heads", {"layers.1.heads"}),
        ("*.heads", {"layers.0.heads", "layers.1.heads", "layers.2.heads"}),
        ("encoder.layer.*.attention.*", {"layers.0.heads", "layers.1.heads", "layers.2.heads"}),
        ("encoder.layer.2.intermediate.dense", {"layers.2.neurons"}),
    ],
)
def test_patterns_protect_blocks(anatomy, pattern, kept):
    assert whole(anatomy, floors(anatomy, keep=[pattern])) == kept


def test_axes_that_are_not_named_stay_whole(anatomy):
    least = floors(anatomy, 1, axes=["heads"])
    assert {count for name, count in least.items() if name.endswith("neurons")} == {24}
    assert {count for name, count in least.items() if name.endswith("heads")} == {1}


def test_floors_are_cut_to_the_size(anatomy):
    assert floors(anatomy, 10)["layers.0.heads"] == 4
    assert floors(anatomy, {"layers.0.heads": 2}) == {g.name: 2 * (g.name == "layers.0.heads") for g in anatomy.groups}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"keep": ["encoder.layers.0.*"]},
            r"keep='encoder.layers.0.\*' fits no block of the model; groups are called ",
        ),
        ({"axes": ["heads", "experts"]}, r"axis 'experts': the model has heads, neurons"),
        ({"floor": -1}, "floor=-1 must not be negative"),
        ({"floor": {"layers.9.heads": 1}}, "'layers.9.heads' is no unit group"),
        ({"floor": 2.5}, "floor=2.5: give a number of units"),
        ({"floor": {"layers.0.heads": 1.5}}, "floor=1.5 must not be negative, and a number of units"),
        ({"keep": "layers.0.*"}, r"keep='layers.0.\*': give a list"),
        ({"axes": "heads"}, "axes='heads': give a list"),
        ({"multiple_of": 2.5}, "multiple_of=2.5 must be 1 or more"),
    ],
)
def test_refusals(anatomy, arguments, message):
    with pytest.raises(InputError, match=message):
        floors(anatomy, **arguments)


def test_granules_count_channels(anatomy):
    heads, neurons = anatomy.groups[:2]  # a head has 8 channels
    assert [granule(heads, n) for n in (1, 8, 12, 64)] == [1, 1, 3, 8]
    assert [granule(neurons, n) for n in (1, 64)] == [1, 64]
    with pytest.raises(InputError, match="multiple_of=0"):
        granule(heads, 0)
