"""Dimensions of heads, q·k and v·o apart, over the zoo: masked = sliced = reloaded, and costs are what is counted."""

import copy
import pickle

import pytest
import torch
import transformers
from matrix import ROUNDING, check_generation, check_reload, check_slices, inputs_of, run
from packaging.version import Version
from transformers import AutoModel

import pyprune
from pyprune.capture.masking import masked
from pyprune.core.errors import BudgetError, InputError, MismatchError
from pyprune.core.plan import Plan
from pyprune.core.units import HEAD_DIM_AXES
from pyprune.models.adapter import adapter_for, members
from pyprune.slicing.check import max_difference
from pyprune.slicing.slice import slice_
from pyprune.testing.models import random_plan, tiny_model
from pyprune.testing.zoo import ZOO

ROWS = [{"input_ids": [5, 6, 7, 8, 9, 10, 11, 12]} for _ in range(8)]


def axes_of(model):
    return [a for a in HEAD_DIM_AXES if any(p.asked == a for member in members(model) for _, p in member.parts())]


VARIANTS = [v for v in ZOO if axes_of(tiny_model(v, ZOO[v].heads[0], torch.float32))]


def dense_and_anatomy(variant, head=None, dtype=torch.float64, **options):
    model = tiny_model(variant, head or ZOO[variant].heads[0], dtype, **options)
    adapter = adapter_for(model)
    return model, adapter, adapter.anatomy(model, axes_of(model))


def narrowed(anatomy, axes=HEAD_DIM_AXES, seed=3):
    """Only dimensions of heads go, a random number from every layer."""
    plan = random_plan(anatomy, seed=seed, emptied=False)
    plan.kept |= {g.name: torch.arange(g.size) for g in anatomy.groups if g.axis not in axes}
    return plan


def made(kind, anatomy):
    if kind in HEAD_DIM_AXES:
        return narrowed(anatomy, (kind,))
    if kind == "keep-all":
        return Plan.keep_all(anatomy)
    return random_plan(anatomy, seed=5, emptied=kind == "emptied")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return tmp_path_factory.mktemp("narrow")


@pytest.mark.parametrize("variant", VARIANTS)
def test_masked_equals_sliced(variant, checkpoints):
    dense, adapter, anatomy = dense_and_anatomy(variant)
    axes = axes_of(dense)
    plans = {kind: made(kind, anatomy) for kind in (*axes, "random", "emptied", "keep-all")}
    check_slices(dense, adapter, axes, plans, checkpoints / variant)


def test_another_process_reloads_all_of_them(checkpoints):
    check_reload(checkpoints)


DECODERS = [v for v in VARIANTS if {"AutoModelForCausalLM", "GitForCausalLM"} & {*ZOO[v].heads}]


@pytest.mark.parametrize("variant", DECODERS)
def test_generation_with_caches(variant):
    """Keys and values of different widths in one cache."""
    if variant == "git" and Version(transformers.__version__) < Version("5.23"):
        pytest.skip("GIT of this transformers version loses its position when it generates with a cache")
    dense, adapter, anatomy = dense_and_anatomy(variant, "AutoModelForCausalLM", torch.float32)
    plan = narrowed(anatomy, seed=1)
    check_generation(dense, adapter, anatomy, plan, chunked=True)


READERS = {
    "bart": "AutoModelForSeq2SeqLM",
    "t5": "AutoModelForSeq2SeqLM",
    "t5-gated": "AutoModelForSeq2SeqLM",
    "whisper": "AutoModelForSpeechSeq2Seq",
    "encoder-decoder": "EncoderDecoderModel",
    "vit-gpt2": "VisionEncoderDecoderModel",
    "vit-bert": "AutoModelForImageTextToText",
    "pix2struct": "AutoModelForImageTextToText",
    "blip-caption": "BlipForConditionalGeneration",
}


@pytest.mark.parametrize(("variant", "head"), READERS.items())
def test_generation_with_cross_attention(variant, head):
    """Caches hold keys and values of a source too, which are made once."""
    dense, adapter, anatomy = dense_and_anatomy(variant, head, torch.float32)
    assert any(g.name.endswith(".cross_qk_dims") for g in anatomy.groups)
    check_generation(dense, adapter, anatomy, narrowed(anatomy, seed=1))


def test_cross_attention_without_a_source_costs_nothing():
    _, _, anatomy = dense_and_anatomy("bart", "AutoModelForCausalLM")
    counts = {g.name: 1 if "cross_" in g.name and g.axis in HEAD_DIM_AXES else g.size for g in anatomy.groups}
    assert anatomy.params(counts) < anatomy.params()
    assert anatomy.flops(12, counts) == anatomy.flops(12)


def test_of_partly_rotated_heads_what_is_not_rotated_may_go():
    """Pythia rotates a quarter of each head: 2 of 8 dimensions here."""
    dense, adapter, anatomy = dense_and_anatomy("gpt_neox")
    sizes = {g.name: g.size for g in anatomy.groups if g.axis == "qk_dims"}
    assert set(sizes.values()) == {6}
    plan = Plan.keep_all(anatomy)
    plan.kept["layers.1.qk_dims"] = torch.tensor([4])
    before = dense.layers[1].attention.query_key_value.weight.view(4, 24, 32)
    slice_(dense, adapter, plan)
    after = dense.layers[1].attention.query_key_value.weight.view(4, 14, 32)
    assert torch.equal(after[:, :3], before[:, [0, 1, 6]])
    assert torch.equal(after[:, 3:6], before[:, [8, 9, 14]])
    assert torch.equal(after[:, 6:], before[:, 16:])


def test_a_width_that_only_dimensions_of_heads_lead_to_is_reloaded(tmp_path):
    """OLMo 2 has no heads to prune, and its width is found by what is asked for beside it."""
    dense = tiny_model("olmo2", "AutoModel", torch.float64)
    adapter = adapter_for(dense)
    anatomy = adapter.anatomy(dense, [*HEAD_DIM_AXES, "hidden"])
    plan = Plan.keep_all(anatomy)
    plan.kept["hidden"] = torch.arange(0, 32, 2)
    inputs = inputs_of(dense)
    with masked(dense, anatomy, plan):
        expected = run(dense, inputs)
    slice_(dense, adapter, plan).save_pretrained(tmp_path)
    reloaded = type(dense).from_pretrained(tmp_path, dtype=torch.float64)
    assert max_difference(expected, run(reloaded, inputs), plan) < ROUNDING


FUSED = ("phi3", "phi3-partial", "gpt2-cross", "gpt_neox", "gpt_neox-sequential")


@pytest.mark.parametrize("variant", [*FUSED, "llama", "qwen3", "bert", "olmo2", "bart", "t5", "blip"])
def test_pruned_again(variant, tmp_path):
    dense, adapter, anatomy = dense_and_anatomy(variant)
    slice_(dense, adapter, narrowed(anatomy, seed=7))
    anatomy = adapter.anatomy(dense, axes_of(dense))
    plan = random_plan(anatomy, seed=8, emptied=False)
    inputs = inputs_of(dense)
    with masked(dense, anatomy, plan):
        expected = run(dense, inputs)
    slice_(dense, adapter, plan)
    assert max_difference(expected, run(dense, inputs)) < ROUNDING
    dense.save_pretrained(tmp_path)
    reloaded = type(dense).from_pretrained(tmp_path, dtype=torch.float64)
    assert max_difference(expected, run(reloaded, inputs)) < ROUNDING
    assert all(torch.equal(a, b) for a, b in zip(dense.buffers(), reloaded.buffers(), strict=True))


TWO_LAYERS = {
    "llama": {"num_hidden_layers": 2},
    "gpt_neox-sequential": {"num_hidden_layers": 2},
    "bart": {"encoder_layers": 2, "decoder_layers": 1},
    "t5": {"num_layers": 2, "num_decoder_layers": 1},
}


@pytest.mark.parametrize("variant", TWO_LAYERS)
def test_copies_and_other_kernels_and_compilation(variant, tmp_path):
    dense, adapter, anatomy = dense_and_anatomy(variant, dtype=torch.float32, **TWO_LAYERS[variant])
    inputs = inputs_of(dense)
    model = slice_(dense, adapter, narrowed(anatomy))
    expected = run(model, inputs)
    assert max_difference(expected, run(copy.deepcopy(model), inputs)) == 0
    assert max_difference(expected, run(pickle.loads(pickle.dumps(model)), inputs)) == 0
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert max_difference(expected, run(compiled, inputs)) < 1e-6
    model.set_attn_implementation("eager")
    assert max_difference(expected, run(model, inputs)) < 1e-5
    model.save_pretrained(tmp_path)
    half = type(model).from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert all(b.dtype == torch.int64 for n, b in half.named_buffers() if n.endswith(("rotary_dims", "kept_heads")))
    if variant != "t5":  # whose scores are too large for this precision, since nothing scales them
        assert max_difference(expected, run(half, inputs)) < 0.3


def test_a_mask_multiplies_what_queries_and_keys_have_in_a_dimension():
    """Of any value, on queries alone: that is what it is to the scores."""
    dense, _, anatomy = dense_and_anatomy("bert")
    inputs = inputs_of(dense)
    block = next(b for b in anatomy.blocks if b.units.axis == "qk_dims")
    mask = torch.linspace(0.5, 1.5, block.units.size, dtype=torch.float64)
    attention = dense.get_submodule(block.layer_path).attention.self
    with masked(dense, anatomy, {block.units.name: mask}):
        found = run(dense, inputs)
    channels = mask.repeat(attention.num_attention_heads)
    with torch.no_grad():
        attention.query.weight *= channels[:, None]
        attention.query.bias *= channels
    assert max_difference(run(dense, inputs), found) < ROUNDING


def test_masks_that_norms_count_are_zero_or_one():
    dense, _, anatomy = dense_and_anatomy("qwen3")
    group = next(g for g in anatomy.groups if g.axis == "qk_dims")
    half = masked(dense, anatomy, {group.name: torch.full((group.size,), 0.5)})
    with pytest.raises(InputError, match="every unit must be 0 or 1, since norms count them"), half:
        pass


@pytest.mark.parametrize("budget", [{"flops": 0.7}, {"params": 0.8}, {"flops": 0.7, "params": 0.9}])
@pytest.mark.parametrize("criterion", ["magnitude", "fisher"])
@pytest.mark.parametrize("axes", [("qk_dims", "vo_dims"), ("qk_dims", "vo_dims", "heads", "neurons", "layers")])
def test_plans_keep_the_budget(axes, criterion, budget):
    """Dimensions and heads are paid once, not twice."""
    dense, _, anatomy = dense_and_anatomy("bert", dtype=torch.float32)
    scores = pyprune.score(dense, data=ROWS, recipe="kwon", criterion=criterion, axes=axes)
    plan = pyprune.plan(dense, scores, budget, recipe="kwon", axes=axes, length=16)
    anatomy = adapter_for(dense).anatomy(dense, axes)
    spent = {r: plan.cost(anatomy, r) / (anatomy.flops(16) if r == "flops" else anatomy.params()) for r in budget}
    assert all(spent[r] <= budget[r] for r in budget)
    assert any(spent[r] > budget[r] - 0.06 for r in budget)
    least = axes if len(axes) == 2 and criterion == "magnitude" else ()
    assert all(plan.counts[g.name] < g.size for g in anatomy.groups if g.axis in least)


def test_budgets_below_the_least_heads():
    dense, _, _ = dense_and_anatomy("bert", dtype=torch.float32)
    scores = pyprune.score(dense, data=ROWS, recipe="kwon", criterion="magnitude", axes=["qk_dims"])
    with pytest.raises(BudgetError, match="cannot be met by the axes that may be cut"):
        pyprune.plan(dense, scores, {"flops": 0.5}, recipe="kwon", axes=["qk_dims"], length=16)


def test_what_has_no_such_axis_says_which_it_has():
    dense = tiny_model("deberta-v2", ZOO["deberta-v2"].heads[0], torch.float32)
    with pytest.raises(InputError, match="axis 'qk_dims': the model has heads, "):
        adapter_for(dense).anatomy(dense, ["qk_dims"])
    dense = tiny_model("gpt2-cross", "AutoModel", torch.float32, reorder_and_upcast_attn=True)
    with pytest.raises(InputError, match="axis 'vo_dims': the model has heads, "):
        adapter_for(dense).anatomy(dense, ["vo_dims"])
    dense = tiny_model("bert", "AutoModel", torch.float32)
    with pytest.raises(InputError, match="its units are no channels of a projection"):
        pyprune.score(dense, data=ROWS, axes=["vo_dims"])


@pytest.mark.parametrize("size", [0, 9, -1, True, "4"])
def test_configs_that_ask_for_impossible_heads(size):
    config = tiny_model("bert", "AutoModel", torch.float32).config
    config.pruned_groups = {"layers.0.qk_dims": size}
    with pytest.raises(MismatchError, match=r"layers\.0\.qk_dims has 8 units in the model, not"):
        AutoModel.from_config(config)
