"""Tokens of an image that layers do not see: masked = sliced = reloaded, and what is counted and refused."""

import copy
import json
import pickle
import re

import pytest
import torch
from matrix import ROUNDING, check_reload, inputs_of, run, save
from torch.nn.functional import softmax
from torch.utils.flop_counter import FlopCounterMode

import pyprune
from pyprune.capture.masking import masked
from pyprune.core.errors import BudgetError, InputError, MismatchError
from pyprune.core.plan import Plan
from pyprune.core.scores import Scores
from pyprune.models.adapter import adapter_for
from pyprune.models.card import card, needs_pyprune
from pyprune.models.native import make_native_
from pyprune.search.joint import value_of
from pyprune.slicing.check import max_difference
from pyprune.slicing.slice import slice_
from pyprune.testing.models import tiny_model
from pyprune.testing.zoo import ZOO

# Every kind of encoder, with every head that takes fewer tokens.
MODELS = [
    *(("vit", "AutoModel"), ("vit", "AutoModelForImageClassification"), ("vit-oblong", "AutoModel")),
    *(("deit", "AutoModel"), ("deit", "DeiTForImageClassificationWithTeacher")),
    *(("dinov2", "AutoModelForImageClassification"), ("dinov2-swiglu", "AutoModel")),
    *(("clip", "AutoModel"), ("clip", "CLIPForImageClassification"), ("clip-vision", "CLIPVisionModelWithProjection")),
    *(("siglip", "AutoModel"), ("siglip", "AutoModelForImageClassification"), ("siglip-headless", "SiglipVisionModel")),
    *(("blip-vision", "BlipVisionModel"), ("git-vision", "GitVisionModel")),
    *(("blip", "AutoModel"), ("blip", "AutoModelForVisualQuestionAnswering")),
    *(("blip-caption", "BlipForConditionalGeneration"), ("vit-gpt2", "VisionEncoderDecoderModel")),
]
# Patches that stay; vit-oblong has 6 of them, all others 9.
SEEN = ([0, 1, 3, 4, 5], [1, 3, 4, 5], [3, 5])


def dense_and_anatomy(variant, head="AutoModel", dtype=torch.float64, axes=("tokens",), **options):
    model = tiny_model(variant, head, dtype, **options)
    return model, adapter_for(model), adapter_for(model).anatomy(model, axes)


def tokens_plan(anatomy, seen=SEEN):
    plan = Plan.keep_all(anatomy)
    for group, positions in zip(anatomy.token_groups, seen, strict=True):
        plan.kept[group.units.name] = torch.tensor([group.positions.index(p) for p in positions])
    return plan


def small_vit(head="AutoModelForImageClassification", dtype=torch.float32):
    dense, adapter, anatomy = dense_and_anatomy("vit", head, dtype)
    return slice_(dense, adapter, tokens_plan(anatomy))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return tmp_path_factory.mktemp("tokens")


@pytest.mark.parametrize("units", [False, True], ids=["tokens", "tokens-and-units"])
@pytest.mark.parametrize(("variant", "head"), MODELS)
def test_masked_equals_sliced(variant, head, units, checkpoints):
    dense, adapter, anatomy = dense_and_anatomy(variant, head)
    inputs = inputs_of(dense)
    plan = tokens_plan(anatomy)
    if units:
        for block in anatomy.blocks:
            plan.kept[block.units.name] = torch.arange(1, block.units.size)
    with masked(dense, anatomy, plan):
        expected = run(dense, inputs)
    names = list(dense.state_dict())
    model = slice_(copy.deepcopy(dense), adapter, plan)
    found = run(model, inputs)
    assert max_difference(expected, found) < ROUNDING
    assert list(model.state_dict()) == names
    after = adapter.anatomy(model, ["tokens"])
    assert [list(group.positions) for group in after.token_groups] == list(SEEN)
    assert plan.cost(anatomy, "flops") == pytest.approx(after.flops(1.0), rel=1e-12)
    assert plan.cost(anatomy, "flops") < 0.9 * anatomy.flops(1.0)
    assert plan.cost(anatomy, "params") == after.params()
    save(model, inputs, found, checkpoints / f"{variant}-{head}-{units}")


def test_another_process_reloads_all_of_them(checkpoints):
    check_reload(checkpoints)


def reference(model, pixels, seen):
    """A pre-norm ViT written out with a mask: no query sees the keys of patches that are gone."""
    x = model.embeddings(pixels)
    for layer, positions in zip(model.layers, seen, strict=True):
        hidden = torch.full((x.shape[1],), -torch.inf, dtype=x.dtype)
        hidden[[0, *(1 + p for p in positions)]] = 0
        y, attention = layer.layernorm_before(x), layer.attention
        q, k, v = (
            p(y).unflatten(-1, (4, -1)).transpose(1, 2) for p in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        weights = softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + hidden, dim=-1)
        x = x + attention.o_proj((weights @ v).transpose(1, 2).flatten(2))
        x = x + layer.mlp(layer.layernorm_after(x))
    return model.layernorm(x)[:, [0, *(1 + p for p in seen[-1])]]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_both_equal_a_model_written_out_with_a_mask(attention):
    dense, adapter, anatomy = dense_and_anatomy("vit", attention=attention)
    pixels = inputs_of(dense)["pixel_values"]
    rounding = ROUNDING if attention == "sdpa" else 1e-5  # transformers' own softmax is in float32
    with torch.no_grad():
        expected = reference(dense, pixels, SEEN)
        with masked(dense, anatomy, tokens_plan(anatomy)):
            assert max_difference([expected], [dense(pixels).last_hidden_state]) < rounding
        small = slice_(dense, adapter, tokens_plan(anatomy))
        assert max_difference([expected], [small(pixels).last_hidden_state]) < rounding


@pytest.mark.parametrize("variant", ["vit", "dinov2", "siglip"])
def test_keeping_all_is_the_dense_model_bit_by_bit(variant):
    dense, adapter, anatomy = dense_and_anatomy(variant, dtype=torch.float32)
    inputs = inputs_of(dense)
    model = slice_(copy.deepcopy(dense), adapter, Plan.keep_all(anatomy))
    assert max_difference(run(dense, inputs), run(model, inputs)) == 0
    assert not needs_pyprune(model.config)


def test_flops_are_the_counted_ones():
    dense, adapter, anatomy = dense_and_anatomy("vit", dtype=torch.float32, attention="eager")
    inputs = {name: tensor[:1] for name, tensor in inputs_of(dense).items()}
    plan = tokens_plan(anatomy)

    def counted(model):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(**inputs)
        by_module = counter.get_flop_counts()
        return sum(sum(flops.values()) for name, flops in by_module.items() if re.search(r"layers\.\d+$", name))

    assert counted(dense) == anatomy.flops(1.0)
    assert counted(slice_(dense, adapter, plan)) == plan.cost(anatomy, "flops")


@pytest.mark.parametrize("variant", ["vit", "vit-bert"])
def test_a_last_layer_that_is_left_out_lets_no_tokens_go(variant):
    model = tiny_model(variant, ZOO[variant].heads[0], torch.float64)
    adapter = adapter_for(model)
    anatomy = adapter.anatomy(model, ["tokens", "layers"])
    plan = Plan.keep_all(anatomy)
    *_, second, last = anatomy.token_groups
    plan.kept[second.units.name] = torch.arange(1, second.units.size)
    plan.kept[last.units.name] = torch.arange(2, last.units.size)
    stack = next(g for g in anatomy.layer_groups if last.layer in g.layers)
    plan.kept[stack.units.name] = torch.arange(stack.units.size - 1)
    inputs = inputs_of(model)
    with masked(model, anatomy, plan):
        expected = run(model, inputs)
    flops = anatomy.flops(8, anatomy.counts(plan.kept))
    slice_(model, adapter, plan)
    assert max_difference(expected, run(model, inputs)) < ROUNDING
    assert flops == pytest.approx(adapter.anatomy(model).flops(8), rel=1e-12)


def test_pruned_again_with_layers_heads_and_width(tmp_path):
    first = small_vit(dtype=torch.float64)
    first.save_pretrained(tmp_path / "first")
    model = type(first).from_pretrained(tmp_path / "first", dtype=torch.float64).eval()
    adapter = adapter_for(model)
    anatomy = adapter.anatomy(model, ["tokens", "layers", "hidden"])
    plan = tokens_plan(anatomy, ([0, 1, 3, 4, 5], [1, 4, 5], [5]))
    plan.kept["layers"] = torch.tensor([0, 2])  # the second goes, and what it lets go stays gone
    plan.kept["hidden"] = torch.arange(3, 32)
    plan.kept["layers.2.heads"] = torch.tensor([1, 3])
    inputs = inputs_of(model)
    with masked(model, anatomy, plan):
        expected = run(model, inputs)
    small = slice_(model, adapter, plan)
    assert max_difference(expected, run(small, inputs)) < ROUNDING
    assert small.config.pruned_tokens == {"0": [0, 1, 3, 4, 5], "1": [5]}
    small.save_pretrained(tmp_path / "second")
    reloaded = type(small).from_pretrained(tmp_path / "second", dtype=torch.float64)
    assert max_difference(expected, run(reloaded, inputs)) < ROUNDING


def test_copies_pickles_types_shards_and_attention_masks(tmp_path):
    model = small_vit()
    inputs = inputs_of(model)
    expected = run(model, inputs)
    assert max_difference(expected, run(copy.deepcopy(model), inputs)) == 0
    assert max_difference(expected, run(pickle.loads(pickle.dumps(model)), inputs)) == 0
    model.save_pretrained(tmp_path, max_shard_size="4KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    for options in ({"device_map": "cpu"}, {"low_cpu_mem_usage": True}):
        assert max_difference(expected, run(type(model).from_pretrained(tmp_path, **options), inputs)) < 1e-5
    assert max_difference(expected, run(copy.deepcopy(model).double(), {"pixel_values": inputs["pixel_values"]})) < 1e-4
    wandered = copy.deepcopy(model).to("meta")
    assert wandered(torch.empty(2, 3, 12, 12, device="meta")).logits.shape == expected.logits.shape
    wandered.to_empty(device="cpu").load_state_dict(model.state_dict())
    assert max_difference(expected, run(wandered, inputs)) < 1e-5


def test_compiled_and_exported_as_one_graph():
    model = small_vit()
    inputs = inputs_of(model)
    expected = run(model, inputs)
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="eager")(**inputs)
        exported = torch.export.export(model, (), inputs).module()(**inputs)
    assert max_difference(expected, compiled) < 1e-5
    assert max_difference([expected.logits], [exported.logits]) < 1e-5


def test_onnx(tmp_path):
    pytest.importorskip("onnxscript")
    assert all(check.equal for check in pyprune.export(small_vit(), tmp_path / "small.onnx").checks)


def test_a_budget_in_flops_by_scores(tmp_path):
    model = tiny_model("vit", "AutoModelForImageClassification")
    anatomy = adapter_for(model).anatomy(model, ["tokens"])
    generator = torch.Generator().manual_seed(0)
    values = {g.units.name: torch.rand(9, generator=generator, dtype=torch.float64) for g in anatomy.token_groups}
    scores = Scores(values)
    plan = pyprune.plan(model, scores, {"flops": 0.7}, axes=["tokens"], length=1)
    assert 0.6 * anatomy.flops(1.0) < plan.cost(anatomy, "flops") <= 0.7 * anatomy.flops(1.0)
    counts = [plan.counts[g.units.name] for g in anatomy.token_groups]
    assert counts == [9, *sorted(counts[1:], reverse=True)]
    best = values["layers.1.tokens"].argsort(descending=True)[: counts[1]]
    assert plan.kept["layers.1.tokens"].tolist() == sorted(best.tolist())
    plan.save(tmp_path / "plan.json")
    small = pyprune.apply(model, Plan.load(tmp_path / "plan.json"))
    assert "layers.2.tokens" in plan.explain(anatomy)
    pyprune.save(small, tmp_path / "small", plan=plan)
    assert "of 9 of `layers.2.tokens`" in (tmp_path / "small/README.md").read_text()
    assert all(check.equal for check in pyprune.verify_model(model, plan, small))
    assert all(check.equal for check in pyprune.verify_checkpoint(tmp_path / "small"))
    with pytest.raises(BudgetError, match="cannot be met by the axes that may be cut"):
        pyprune.plan(model, scores, {"params": 0.7}, axes=["tokens"], length=1)


def test_tokens_and_units_share_a_budget():
    model = tiny_model("vit", "AutoModelForImageClassification")
    anatomy = adapter_for(model).anatomy(model, ["tokens"])
    scores = Scores({g.name: torch.rand(g.size, dtype=torch.float64) for g in anatomy.groups})
    axes = ["tokens", "neurons"]
    plan = pyprune.plan(model, scores, {"flops": 0.5}, axes=axes, length=1, floor={"layers.1.tokens": 7})
    assert plan.cost(anatomy, "flops") <= 0.5 * anatomy.flops(1.0)
    assert plan.counts["layers.1.tokens"] >= 7
    assert all(plan.counts[g.name] == g.size for g in anatomy.groups if g.axis == "heads")
    assert all(check.equal for check in pyprune.verify_model(model, plan))


def test_a_patch_that_is_gone_is_lost_once():
    """In the first layer without it: a search that counted it for every layer behind would rather cut other axes."""
    model = tiny_model("vit", "AutoModelForImageClassification")
    anatomy = adapter_for(model).anatomy(model, ["tokens", "layers"])
    generator = torch.Generator().manual_seed(0)
    names = [g.name for g in anatomy.groups if g.axis in ("tokens", "neurons")]
    sizes = {g.name: g.size for g in anatomy.groups}
    scores = Scores({n: torch.rand(sizes[n], generator=generator, dtype=torch.float64) for n in names})
    plan = tokens_plan(anatomy, ([*range(8)], [0, 1, 2, 3, 5, 7], [3, 5]))
    plan.kept["layers.0.neurons"] = torch.arange(4, sizes["layers.0.neurons"])
    first, second, third = (scores.values[g.units.name] for g in anatomy.token_groups)
    neurons = scores.values["layers.0.neurons"][:4].sum()
    lost = float(first[8] + second[[4, 6]].sum() + third[[0, 1, 2, 7]].sum() + neurons)
    whole = value_of(Plan.keep_all(anatomy), anatomy, scores)
    assert whole - value_of(plan, anatomy, scores) == pytest.approx(lost)
    plan.kept["layers"] = torch.tensor([0, 2])  # what the second let go, the third does
    lost += float(third[[4, 6]].sum() - second[[4, 6]].sum() + scores.values["layers.1.neurons"].sum())
    assert whole - value_of(plan, anatomy, scores) == pytest.approx(lost)


REFUSED = [
    ("bert", "AutoModel", "axis 'tokens': the model has heads, hidden, layers, neurons"),
    ("swin", "AutoModel", "axis 'tokens': the model has heads, neurons"),
    ("segformer", "AutoModel", "axis 'tokens': the model has"),
    ("resnet", "AutoModel", "axis 'tokens': the model has channels"),
    ("vit", "AutoModelForMaskedImageModeling", "it puts the tokens of the whole image back together"),
    ("dinov2", "AutoBackbone", "it puts the tokens of the whole image back together"),
    ("git", "GitForCausalLM", "GitVisionModel inside it must put out the tokens of the whole image"),
]


@pytest.mark.parametrize(("variant", "head", "reason"), REFUSED)
def test_models_that_need_all_tokens_are_refused(variant, head, reason):
    with pytest.raises(InputError, match=re.escape(reason)):
        dense_and_anatomy(variant, head, torch.float32)


def test_plans_that_cannot_be():
    _, _, anatomy = dense_and_anatomy("vit")
    with pytest.raises(
        InputError, match=r"layers.1.tokens keeps the patch at position 3, which layers.0.tokens does not"
    ):
        tokens_plan(anatomy, ([0, 1], [0, 3], [0])).check(anatomy)
    with pytest.raises(InputError, match=r"layers.2.tokens must keep at least 1 of 9"):
        tokens_plan(anatomy, ([0, 1], [0], [])).check(anatomy)
    with pytest.raises(InputError, match=r"keeps a unit outside 0..8"):
        Plan({"layers.0.tokens": torch.tensor([9])}, {"layers.0.tokens": 9}, 1.0)


def test_another_size_of_image_is_refused():
    model = small_vit()
    wide = torch.randn(1, 3, 4, 36)  # nine patches too
    with pytest.raises(
        InputError, match="an image of 4 x 36: this model lost tokens by their positions in images of 12 x 12"
    ):
        model(wide, interpolate_pos_encoding=True)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"0": [0, 1], "1": [0, 2]}, "layer 1 keeps position 2, which is gone before it"),
        ({"1": [0, 9]}, "layer 1 must keep positions below 9"),
        ({"1": [1, 0]}, "layer 1 must keep positions below 9 in order"),
        ({"3": [0]}, "there is no layer 3, the model has 3"),
        ({"1": []}, "expected positions by the numbers of layers"),
        ([1], "expected positions by the numbers of layers"),
    ],
)
def test_a_note_that_was_edited_by_hand(edit, message, tmp_path):
    model = small_vit()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["pruned_tokens"] = edit
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(MismatchError, match=re.escape(message)):
        type(model).from_pretrained(tmp_path)


def test_loaded_under_a_head_that_needs_all_tokens(tmp_path):
    from transformers import ViTForMaskedImageModeling

    small_vit("AutoModel").save_pretrained(tmp_path)
    with pytest.raises(InputError, match="ViTForMaskedImageModeling: it puts the tokens"):
        ViTForMaskedImageModeling.from_pretrained(tmp_path)


def test_no_familys_own_config_says_it():
    model = small_vit()
    assert needs_pyprune(model.config)
    assert not make_native_(model)
    assert "loads as the dense model" in card(model, adapter_for(model).anatomy(model), None, None)


def test_weights_say_nothing_of_tokens():
    from pyprune.importance import CRITERIA
    from pyprune.importance.registry import Evidence

    model, _, anatomy = dense_and_anatomy("vit")
    with pytest.raises(InputError, match="tokens have no weights"):
        CRITERIA["magnitude"].values(Evidence(model, anatomy, None))
    assert CRITERIA["random"].values(Evidence(model, anatomy, None))["layers.2.tokens"].shape == (9,)


def test_masks_of_tokens_are_0_or_1():
    model, _, anatomy = dense_and_anatomy("vit")
    with pytest.raises(InputError, match=r"mask of layers\.1\.tokens: every token must be 0 or 1"):
        masked(model, anatomy, {"layers.1.tokens": torch.full((9,), 0.5)}).__enter__()
