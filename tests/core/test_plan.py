"""Plans: what they say, what can be edited by hand, and what is refused."""

import json
import re

import pytest
import torch

from pyprune.core.errors import InputError, MismatchError
from pyprune.core.plan import Plan
from pyprune.models.adapter import adapter_for
from pyprune.testing.models import tiny_model


@pytest.fixture(scope="module")
def anatomy():
    model = tiny_model("bert")
    return adapter_for(model).anatomy(model)


def small():
    return Plan(
        {"a": torch.tensor([3, 0]), "b": torch.tensor([], dtype=torch.int64)}, {"a": 4, "b": 2}, 7.5, {"seed": 1}
    )


def test_kept_units_are_sorted_and_int64():
    plan = small()
    assert plan.kept["a"].tolist() == [0, 3]
    assert plan.kept["a"].dtype == torch.int64
    assert plan.mask("a").tolist() == [True, False, False, True]
    assert plan.mask("b").tolist() == [False, False]
    assert plan.counts == {"a": 2, "b": 0}


def test_the_callers_dict_stays_as_it_is():
    kept = {"a": torch.tensor([2, 1])}
    Plan(kept, {"a": 3}, 1.0)
    assert kept["a"].tolist() == [2, 1]


def test_round_trip(tmp_path):
    path = tmp_path / "plan.json"
    small().save(path)
    loaded = Plan.load(path)
    assert {name: index.tolist() for name, index in loaded.kept.items()} == {"a": [0, 3], "b": []}
    assert (loaded.sizes, loaded.length, loaded.meta) == ({"a": 4, "b": 2}, 7.5, {"seed": 1})
    assert loaded.kept["b"].dtype == torch.int64


def edited(tmp_path, change):
    path = tmp_path / "plan.json"
    small().save(path)
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    return path


def test_an_edit_by_hand_counts(tmp_path):
    path = edited(tmp_path, lambda data: data["groups"]["b"].update(keep=[1]))
    assert Plan.load(path).kept["b"].tolist() == [1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["groups"]["a"].update(keep=[0, 4]), "a keeps a unit outside 0..3"),
        (lambda d: d["groups"]["a"].update(keep=[-1]), "a keeps a unit outside 0..3"),
        (lambda d: d["groups"]["a"].update(keep=[1, 1]), "a keeps a unit twice"),
        (lambda d: d["groups"]["a"].update(keep=[0.5, 2]), "a must keep a list of unit numbers"),
        (lambda d: d["groups"]["a"].update(keep=[True, False]), "a must keep a list of unit numbers"),
        (lambda d: d["groups"]["a"].update(keep=[[0, 1]]), "a must keep a list of unit numbers"),
        (lambda d: d["groups"]["a"].update(keep="all"), "broken plan"),
        (lambda d: d["groups"]["a"].pop("keep"), "broken plan"),
        (lambda d: d["groups"]["a"].pop("size"), "broken plan"),
        (lambda d: d["groups"]["a"].update(size=4.5), "a has the size 4.5, which is no number of units"),
        (lambda d: d["groups"]["a"].update(size="4"), "a has the size '4', which is no number of units"),
        (lambda d: d["groups"].update(a=[1, 2]), "broken plan"),
        (lambda d: d.pop("length"), "broken plan"),
        (lambda d: d.update(length=0), "length=0.0 must be positive"),
        (lambda d: d.update(length=float("nan")), "length=nan must be positive"),
        (lambda d: d.update(pyprune_plan=2), "not a pyprune plan"),
        (lambda d: d.pop("groups"), "not a pyprune plan"),
    ],
)
def test_a_broken_file_is_named(tmp_path, change, message):
    path = edited(tmp_path, change)
    with pytest.raises(InputError, match=re.escape(f"{path}: ")) as error:
        Plan.load(path)
    assert message in str(error.value)


@pytest.mark.parametrize(("text", "message"), [("", "not a JSON file"), ("[1]", "expected a JSON object, found list")])
def test_other_files_are_named(tmp_path, text, message):
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        Plan.load(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        Plan.load(tmp_path / "none.json")


def test_every_group_needs_a_size():
    with pytest.raises(InputError, match="'b'"):
        Plan({"a": torch.tensor([0])}, {"a": 1, "b": 1}, 1.0)


def test_keep_all_keeps_all(anatomy):
    plan = Plan.keep_all(anatomy, 5.0)
    plan.check(anatomy)
    assert plan.counts == {g.name: g.size for g in anatomy.groups}
    assert plan.cost(anatomy, "flops") == anatomy.flops(5.0)
    assert plan.cost(anatomy, "params") == anatomy.params()


def test_costs_are_those_of_the_publications(anatomy):
    # hidden 32, heads of 8, 3 layers: a head has 4 * 32 * 8 weights and 2 * 8 MACs a pair of tokens, a neuron 2 * 32.
    head, neuron = 2 * (5 * 4 * 32 * 8 + 25 * 2 * 8), 2 * 5 * 2 * 32
    plan = Plan.keep_all(anatomy, 5.0)
    plan.kept["layers.1.heads"] = torch.tensor([2])
    plan.kept["layers.2.neurons"] = torch.arange(10)
    assert plan.cost(anatomy, "flops") == 9 * head + 58 * neuron
    assert plan.cost(anatomy, "params") == 9 * 4 * 32 * 8 + 58 * 2 * 32


def test_a_plan_for_another_model_is_refused(anatomy):
    plan = Plan.keep_all(anatomy)
    plan.sizes["layers.1.heads"] = 5
    with pytest.raises(MismatchError, match=r"layers\.1\.heads has 4 units here, 5 in the plan"):
        plan.check(anatomy)
    with pytest.raises(MismatchError, match="another model"):
        small().check(anatomy)


def test_explain_says_what_goes_and_what_it_saves(anatomy):
    plan = Plan.keep_all(anatomy, 5.0)
    plan.kept["layers.0.heads"] = torch.tensor([], dtype=torch.int64)
    lines = plan.explain(anatomy).splitlines()
    assert len(lines) == 1 + len(anatomy.groups) + 1
    share = 4 * anatomy.groups[0].cost.params / anatomy.params()
    assert lines[1].split() == ["layers.0.heads", "0", "4", "0.0%", *lines[1].split()[4:]]
    assert lines[1].endswith(f"{share:.2%}")
    assert f"keep {plan.cost(anatomy, 'flops') / anatomy.flops(5.0):.2%} of their FLOPs" in lines[-1]
    assert f"{1 - share:.2%} of their weights" in lines[-1]
