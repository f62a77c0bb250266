"""Single query heads of a KV group, over the zoo: masked = sliced = reloaded, however uneven the groups become."""

import copy
import pickle

import pytest
import torch
from matrix import ROUNDING, check_generation, check_reload, check_slices, flops, inputs_of, run, save, weights

import pyprune
from pyprune.capture.masking import masked
from pyprune.core.errors import InputError, MismatchError
from pyprune.core.plan import Plan
from pyprune.core.units import QUERY_HEADS
from pyprune.models.adapter import adapter_for, members, records
from pyprune.slicing.check import max_difference
from pyprune.slicing.slice import slice_
from pyprune.testing.models import random_plan, tiny_config, tiny_model
from pyprune.testing.zoo import ZOO

ROWS = [{"input_ids": [5, 6, 7, 8, 9, 10, 11, 12]} for _ in range(8)]
READERS = 4  # of each key/value head


def model_of(variant, head=None, dtype=torch.float64):
    heads = {"num_attention_heads": 2 * READERS, "num_key_value_heads": 2}
    return tiny_model(variant, head or ZOO[variant].heads[0], dtype, **heads)


def is_grouped(variant):
    if not hasattr(tiny_config(variant), "num_key_value_heads"):
        return False
    parts = [(place, part) for m in members(tiny_model(variant, ZOO[variant].heads[0])) for place, part in m.parts()]
    return any(QUERY_HEADS in part.asked_axes(place.layer) for place, part in parts)


VARIANTS = [v for v in ZOO if is_grouped(v)]


def dense_and_anatomy(variant, head=None, dtype=torch.float64, axes=(QUERY_HEADS,)):
    model = model_of(variant, head, dtype)
    adapter = adapter_for(model)
    return model, adapter, adapter.anatomy(model, axes)


def plan_of(anatomy, kept, others=None):
    """`kept` of the query heads of each layer, in turn; what `others` says of the rest."""
    plan = others or Plan.keep_all(anatomy)
    groups = [g for g in anatomy.groups if g.axis == QUERY_HEADS]
    plan.kept |= {g.name: torch.tensor(units, dtype=torch.int64) for g, units in zip(groups, kept, strict=False)}
    return plan


PLANS = {
    "uneven": [[0, 1, 6], [2, 4, 5, 6, 7]],
    "even": [[0, 2, 4, 5], [0, 1, 2, 3, 4, 5, 6, 7]],  # as many readers each, but fewer than the config says
    "whole groups": [[4, 5, 6, 7], [0, 1, 2, 4]],  # one layer stays a plain one
    "emptied": [[], [4]],
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return tmp_path_factory.mktemp("uneven")


def made(kind, anatomy):
    if kind == "random":
        return random_plan(anatomy, seed=5, emptied=False)
    return plan_of(anatomy, PLANS.get(kind, []))


@pytest.mark.parametrize("variant", VARIANTS)
def test_masked_equals_sliced(variant, checkpoints):
    dense, adapter, anatomy = dense_and_anatomy(variant)
    plans = {kind: made(kind, anatomy) for kind in (*PLANS, "random", "keep-all")}
    check_slices(dense, adapter, [QUERY_HEADS], plans, checkpoints / variant)


@pytest.mark.parametrize("variant", VARIANTS)
def test_costs_are_what_is_counted(variant):
    dense, adapter, anatomy = dense_and_anatomy(variant)
    dense.set_attn_implementation("eager")  # whose products are counted alike on every version
    plan = made("uneven", anatomy)
    inputs = {"input_ids": torch.randint(5, 50, (1, 10))}
    model = slice_(copy.deepcopy(dense), adapter, plan)
    assert weights(dense) - weights(model) == anatomy.params() - plan.cost(anatomy, "params")
    plan.length = 10.0
    assert flops(dense, inputs) - flops(model, inputs) == anatomy.flops(10.0) - plan.cost(anatomy, "flops")


@pytest.mark.parametrize("variant", VARIANTS)
def test_beside_dimensions_of_heads(variant, checkpoints):
    """Both are cut from the same rows, and neither is paid twice."""
    axes = (QUERY_HEADS, "qk_dims", "vo_dims")
    dense, adapter, anatomy = dense_and_anatomy(variant, axes=axes)
    inputs = inputs_of(dense)
    plan = plan_of(anatomy, PLANS["uneven"], random_plan(anatomy, seed=3, emptied=False))
    with masked(dense, anatomy, plan):
        expected = run(dense, inputs)
    model = slice_(dense, adapter, plan)
    found = run(model, inputs)
    assert max_difference(expected, found) < ROUNDING
    after = adapter.anatomy(model, axes)
    assert {g.name: g.size for g in after.groups} == plan.counts
    assert anatomy.params(anatomy.counts(plan.kept)) == after.params()
    assert plan.cost(anatomy, "flops") == pytest.approx(after.flops(plan.length), rel=1e-12)
    save(model, inputs, found, checkpoints / f"{variant}-narrow")


@pytest.mark.parametrize(("variant", "head"), [(v, head) for v in VARIANTS for head in ZOO[v].heads[1:]])
def test_task_models(variant, head, checkpoints):
    """When such a model is built, the base model inside is cut before the whole."""
    dense, adapter, anatomy = dense_and_anatomy(variant, head)
    inputs = inputs_of(dense)
    plan = made("uneven", anatomy)
    with masked(dense, anatomy, plan):
        expected = run(dense, inputs)
    model = slice_(dense, adapter, plan)
    found = run(model, inputs)
    assert max_difference(expected, found) < ROUNDING
    save(model, inputs, found, checkpoints / f"{variant}-{head}")


def test_another_process_reloads_all_of_them(checkpoints):
    check_reload(checkpoints)


@pytest.mark.parametrize("variant", [v for v in VARIANTS if "AutoModelForCausalLM" in ZOO[v].heads])
def test_generation_with_caches(variant):
    """Caches hold every key/value head once, however many query heads read it."""
    dense, adapter, anatomy = dense_and_anatomy(variant, "AutoModelForCausalLM", torch.float32)
    check_generation(dense, adapter, anatomy, made("uneven", anatomy), chunked=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_maps_are_where_the_weights_are():
    dense, adapter, anatomy = dense_and_anatomy("llama", dtype=torch.float32)
    model = slice_(dense.cuda(), adapter, made("uneven", anatomy))
    assert {buffer.device.type for buffer in model.buffers()} == {"cuda"}
    ids = torch.arange(5, 9)[None]
    found = run(model, {"input_ids": ids.cuda()}).last_hidden_state.cpu()
    assert max_difference(found, run(model.cpu(), {"input_ids": ids}).last_hidden_state) < 1e-4


def test_caches_hold_key_value_heads_once():
    dense, adapter, anatomy = dense_and_anatomy("llama", "AutoModelForCausalLM", torch.float32)
    model = slice_(dense, adapter, plan_of(anatomy, [[0, 4, 5], [1, 2]]))
    cache = model(torch.arange(5, 10)[None], use_cache=True).past_key_values
    assert [layer.keys.shape[1] for layer in cache.layers][:2] == [2, 1]


@pytest.mark.parametrize("variant", ["llama", "phi3", "gemma3"])
def test_pruned_again(variant, tmp_path):
    """By query heads, then by default: uneven layers lose query heads, the others KV groups; then by query heads."""
    dense, adapter, anatomy = dense_and_anatomy(variant)
    slice_(dense, adapter, plan_of(anatomy, [[0, 1, 3, 7]]))
    inputs = inputs_of(dense)
    for axes, kept in ((), [[0, 3]]), ((QUERY_HEADS,), [[1], [0, 1, 3]]):
        anatomy = adapter.anatomy(dense, axes)
        plan = plan_of(anatomy, kept)
        with masked(dense, anatomy, plan):
            expected = run(dense, inputs)
        slice_(dense, adapter, plan)
        assert max_difference(expected, run(dense, inputs)) < ROUNDING
        dense.save_pretrained(tmp_path)
        reloaded = type(dense).from_pretrained(tmp_path, dtype=torch.float64)
        assert max_difference(expected, run(reloaded, inputs)) < ROUNDING
        assert [g for r in records(reloaded) for g in r.groups] == [g for r in records(dense) for g in r.groups]
        dense = reloaded


def test_layers_go_with_their_maps(tmp_path):
    axes = (QUERY_HEADS, "layers")
    dense, adapter, anatomy = dense_and_anatomy("llama", axes=axes)
    plan = plan_of(anatomy, [[0], [1, 2, 7], [0, 4]])
    depth = len(anatomy.layers)
    plan.kept["layers"] = torch.arange(1, depth)
    with masked(dense, anatomy, plan):
        expected = run(dense, inputs := inputs_of(dense))
    slice_(dense, adapter, plan)
    assert max_difference(expected, run(dense, inputs)) < ROUNDING
    assert dense.layers[0].self_attn.kv_map.tolist() == [0, 0, 1]
    dense.save_pretrained(tmp_path)
    assert max_difference(expected, run(type(dense).from_pretrained(tmp_path, dtype=torch.float64), inputs)) < ROUNDING


def test_heads_that_come_to_the_width_of_the_dense_model_reload(tmp_path):
    axes = ("qk_dims", "hidden")
    dense, adapter, anatomy = dense_and_anatomy("qwen3", "AutoModelForCausalLM", axes=axes)
    plan = Plan.keep_all(anatomy)
    plan.kept |= {g.name: torch.arange(4) for g in anatomy.groups if g.axis == "qk_dims"}
    plan.kept["hidden"] = torch.arange(3, 23)
    inputs = inputs_of(dense)
    with masked(dense, anatomy, plan):
        expected = run(dense, inputs)
    model = slice_(dense, adapter, plan)
    assert READERS * model.model.layers[0].self_attn.qk_dim == model.config.hidden_size
    model.save_pretrained(tmp_path)
    reloaded = type(model).from_pretrained(tmp_path, dtype=torch.float64)
    assert max_difference(expected, run(reloaded, inputs), plan) < ROUNDING


def test_copies_and_other_kernels_and_compilation(tmp_path):
    dense, adapter, anatomy = dense_and_anatomy("llama", dtype=torch.float32)
    inputs = inputs_of(dense)
    model = slice_(dense, adapter, made("uneven", anatomy))
    expected = run(model, inputs)
    assert max_difference(expected, run(copy.deepcopy(model), inputs)) == 0
    assert max_difference(expected, run(pickle.loads(pickle.dumps(model)), inputs)) == 0
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert max_difference(expected, run(compiled, inputs)) < 1e-6
    model.set_attn_implementation("eager")
    assert max_difference(expected, run(model, inputs)) < 1e-5
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    half = type(model).from_pretrained(tmp_path, dtype=torch.bfloat16, device_map="auto")
    assert half.layers[0].self_attn.kv_map.tolist() == [0, 0, 1]
    assert max_difference(expected, run(half, inputs)) < 0.3


@pytest.mark.parametrize("budget", [{"flops": 0.7}, {"params": 0.8}, {"flops": 0.7, "params": 0.9}])
@pytest.mark.parametrize("axes", [(QUERY_HEADS,), (QUERY_HEADS, "qk_dims", "neurons", "layers")])
def test_plans_keep_the_budget(axes, budget):
    """A key/value head is paid until the last of its readers goes."""
    dense = model_of("llama", dtype=torch.float32)
    scores = pyprune.score(dense, data=ROWS, recipe="kwon", criterion="magnitude", axes=axes)
    plan = pyprune.plan(dense, scores, budget, recipe="kwon", axes=axes, length=16)
    anatomy = adapter_for(dense).anatomy(dense, axes)
    spent = {r: plan.cost(anatomy, r) / (anatomy.flops(16) if r == "flops" else anatomy.params()) for r in budget}
    assert all(spent[r] <= budget[r] for r in budget)
    assert any(spent[r] > budget[r] - 0.06 for r in budget)


@pytest.mark.parametrize("recipe", ["surgeon", "kwon"])
def test_recipes_score_and_tune_them_from_data(recipe):
    """They are channels of a projection as heads are."""
    dense = model_of("llama", "AutoModelForCausalLM", torch.float32)
    result = pyprune.prune(dense, {"flops": 0.7}, data=ROWS, recipe=recipe, axes=[QUERY_HEADS, "neurons"], samples=4)
    lost = [g for g in result.anatomy.groups if g.axis == QUERY_HEADS and result.plan.counts[g.name] < g.size]
    assert lost
    assert any(outcome.fitted for outcome in result.outcomes)
    assert result.plan.cost(result.anatomy, "flops") <= 0.7 * result.anatomy.flops(result.plan.length)


def test_uniform_plans_leave_them_whole():
    dense = model_of("llama", dtype=torch.float32)
    axes = [QUERY_HEADS, "neurons"]
    scores = pyprune.score(dense, data=ROWS, recipe="kwon", criterion="magnitude", axes=axes)
    plan = pyprune.plan(dense, scores, {"flops": 0.8}, recipe="kwon", axes=axes, length=16, deploy="uniform")
    assert all(plan.counts[name] == size for name, size in plan.sizes.items() if name.endswith(QUERY_HEADS))


def test_what_has_one_key_value_head_for_each_says_what_it_has():
    dense = tiny_model("llama-mha", "AutoModel", torch.float32)
    with pytest.raises(InputError, match="axis 'query_heads': the model has heads, "):
        adapter_for(dense).anatomy(dense, [QUERY_HEADS])


@pytest.mark.parametrize(
    ("count", "says"),
    [(-1, "has 8 units in the model"), ("x", "has 8 units"), (9, "has 8 units"), (1, "1 query heads, for 2 key/value")],
)
def test_configs_that_ask_for_impossible_heads(count, says):
    config = model_of("llama").config
    config.pruned_groups = {"layers.0.query_heads": count}
    with pytest.raises(MismatchError, match=says):
        type(model_of("llama"))(config)
