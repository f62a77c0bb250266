"""OPTIN against one masked forward pass per unit, in its settings, and with what it cannot use."""

import math

import pytest
import torch
from scipy.stats import spearmanr

import pyprune
from pyprune.calibration import calibration_data
from pyprune.capture.one_by_one import one_by_one
from pyprune.core.errors import InputError, NumericsError
from pyprune.core.stages import Stages
from pyprune.importance.trajectory import balance, published_scores
from pyprune.models.adapter import adapter_for
from pyprune.models.inputs import example_inputs
from pyprune.testing.models import tiny_model

CLASSIFIER = "AutoModelForSequenceClassification"


def texts(count=6, length=6, varied=1):
    generator = torch.Generator().manual_seed(0)
    return [{"input_ids": torch.randint(3, 99, (length + i % varied,), generator=generator)} for i in range(count)]


def scored(recipe, model, rows):
    anatomy, samples = adapter_for(model).anatomy(model), calibration_data(model, None, rows)[0]
    return recipe.score(model, anatomy, samples, 0, Stages(True))


def by_hand(model, rows, joint=False):
    """Both terms of every unit, from whole forward passes."""
    model = model.double()
    anatomy, samples = adapter_for(model).anatomy(model), calibration_data(model, None, rows)[0]
    units = {g.name: torch.arange(g.size) for g in anatomy.groups}
    return anatomy, one_by_one(model, anatomy, samples.batches(), units, joint)


def test_exact_scores_are_both_terms_of_masked_passes():
    model = tiny_model("bert", CLASSIFIER, torch.float64)
    scores = scored(pyprune.OPTIN(band=1.0, lambda_c=0.3), model, texts())
    _, removal = by_hand(model, texts())
    ratios = {name: values / removal.answer[name] for name, values in removal.trajectory.items()}
    # The balance is of the estimates, before any is replaced: found again from one unit, it fits all others.
    name = next(iter(ratios))
    factor = (scores.values[name][0] - removal.trajectory[name][0]) / removal.answer[name][0]
    for name in ratios:
        expected = removal.trajectory[name] + factor * removal.answer[name]
        torch.testing.assert_close(scores.values[name], expected, rtol=1e-9, atol=0)
    typical = torch.cat(list(ratios.values())).log().mean().exp()
    assert 0.1 * 0.3 * float(typical) < float(factor) < 10 * 0.3 * float(typical)
    assert scores.meta["refined"] == 3 * 24


@pytest.mark.parametrize("settings", [{}, {"gram": "joint"}, {"heads": "probes"}])
def test_estimates_rank_units_as_masked_passes_do(settings):
    model = tiny_model("bert", CLASSIFIER, torch.float64)
    with torch.no_grad():
        for block in adapter_for(model).anatomy(model).blocks:
            model.get_submodule(block.projection).weight.mul_(0.1)
    scores = scored(pyprune.OPTIN(probes=100, lambda_c=0, **settings), model, texts())
    _, removal = by_hand(model, texts(), settings.get("gram") == "joint")
    for axis in ("neurons", "heads"):
        names = [name for name in removal.trajectory if axis in name]
        found, expected = (
            torch.cat([values[name] for name in names]) for values in (scores.values, removal.trajectory)
        )
        if axis == "neurons" or "heads" in settings:
            assert spearmanr(found, expected).statistic > 0.8
        else:
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
    assert 0 < scores.meta["relative_error"] < 0.2


def test_the_band_lies_around_the_threshold():
    model = tiny_model("bert", CLASSIFIER, torch.float64)
    rows = texts()
    plain = scored(pyprune.OPTIN(probes=4), model, rows)
    refined = scored(pyprune.OPTIN(probes=4, band=0.25, around=0.5), model, rows)
    names = [name for name in plain.values if "neurons" in name]
    before = torch.cat([plain.values[name] for name in names])
    changed = torch.cat([plain.values[name] != refined.values[name] for name in names])
    assert int(changed.sum()) == refined.meta["refined"] == 18
    plan = pyprune.plan(model, plain, {"flops": 0.5}, recipe="optin")
    kept = torch.cat([torch.isin(torch.arange(24), plan.kept[name]) for name in names])
    threshold = before[kept].min().log()
    assert float((before[changed].log() - threshold).abs().max()) <= float(
        (before[~changed].log() - threshold).abs().min()
    )
    for name in plain.values.keys() - set(names):
        assert torch.equal(plain.values[name], refined.values[name])


def test_whole_samples_up_to_the_budget_of_tokens():
    model = tiny_model("bert", CLASSIFIER)
    rows = texts(6, varied=3)  # of 6, 7, 8, 6, 7, 8 tokens
    assert scored(pyprune.OPTIN(probes=1, tokens=27), model, rows).meta["samples"] == 4
    alone = scored(pyprune.OPTIN(probes=1, tokens=2), model, rows)
    assert (alone.meta["samples"], alone.meta["tokens"], alone.meta["notices"]) == (1, 6, [])
    assert alone.meta["mean_length"] == 7.0  # at which FLOPs count: of all samples


def test_too_few_tokens_are_all_used_and_said_to_be():
    for recipe, wanted in ((pyprune.OPTIN(probes=1), 1024), (pyprune.OPTIN(compat="published"), 768)):
        scores = scored(recipe, tiny_model("bert", CLASSIFIER), texts(6, varied=3))
        assert scores.meta["notices"] == [
            f"optin: the data has 42 tokens, and {wanted} were to be compared: all of them are"
        ]
        assert scores.meta["tokens"] == 42


def test_published_scores_have_their_factors():
    model = tiny_model("bert", CLASSIFIER, torch.float64)
    scores = scored(pyprune.OPTIN(compat="published"), model, texts(varied=2))
    anatomy, removal = by_hand(model, texts(varied=2), joint=True)
    stored = {"heads": [], "neurons": []}
    for layer, block in enumerate(anatomy.blocks):
        name, kind, size = block.units.name, block.units.axis, block.units.size
        for unit in range(size):
            md, kd = float(removal.trajectory[name][unit]), 16 * float(removal.answer[name][unit])
            if md > kd > 0:
                stored[kind].append(10.0 ** math.trunc(math.log10(md / kd) - math.log10(10.0)))
                factor = stored[kind][-1]
            else:
                factor = sum(stored[kind]) / len(stored[kind]) if stored[kind] else 1.0
            at = unit / (size - 1)
            ramp = 100 ** (1 - at) if kind == "neurons" else 10 ** (1 - at) * 0.5
            ramp *= 0.5 if layer // 2 == len(anatomy.layers) - 1 else 1.0
            assert math.isclose(float(scores.values[name][unit]), (md + factor * kd) * ramp, rel_tol=1e-5)


def test_published_factors_of_vision_models():
    model = tiny_model("vit", "AutoModelForImageClassification", torch.float64)
    anatomy = adapter_for(model).anatomy(model)
    ones = {g.name: torch.ones(g.size, dtype=torch.float64) for g in anatomy.groups}
    values = published_scores(ones, ones, anatomy, 0.1, vision=True)
    last = {block.units.name for block in anatomy.blocks if block.layer_path == anatomy.layers[-1]}
    for block in anatomy.blocks:
        name = block.units.name
        factor = 1e-4 if name in last and block.units.axis == "neurons" else 1.0
        torch.testing.assert_close(values[name], torch.full_like(values[name], 17.0 * factor))  # T^2 = 16


def test_balance_by_hand():
    trajectory = {"a": torch.tensor([8.0, 0.0]), "b": torch.tensor([2.0])}
    answer = {"a": torch.tensor([2.0, 5.0]), "b": torch.tensor([8.0])}
    assert math.isclose(balance(trajectory, answer, 0.5), 0.5)
    assert balance({"a": torch.zeros(2)}, {"a": torch.ones(2)}, 0.5) == 1.0


@pytest.mark.parametrize(
    ("variant", "head"),
    [
        ("bert", "AutoModel"),
        ("llama", "AutoModelForCausalLM"),
        ("t5", "AutoModelForSeq2SeqLM"),
        ("vit", "AutoModelForImageClassification"),
        ("swin", "AutoModelForImageClassification"),
        ("mask2former", "AutoModelForUniversalSegmentation"),
    ],
)
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_families_are_pruned(variant, head):
    model = tiny_model(variant, head)
    made = example_inputs(model, 2)
    rows = [{k: v[s] for k, v in made.items()} for s in range(2)]
    result = pyprune.prune(model, {"params": 0.7}, data=rows, recipe="optin", probes=2)
    assert result.plan.cost(result.anatomy, "params") <= 0.7 * result.anatomy.params()
    assert result.scores.meta["criterion"] == "optin"
    ran_again = [line for line in result.scores.meta["notices"] if "run again" in line]
    assert bool(ran_again) == (variant == "mask2former")


def test_a_layer_with_one_unit():
    model = tiny_model("bert", CLASSIFIER, torch.float64)
    anatomy = adapter_for(model).anatomy(model)
    plan = pyprune.plan(model, scored(pyprune.OPTIN(probes=2), model, texts()), {"flops": 0.99}, recipe="optin")
    for block in anatomy.blocks[2:4]:
        plan.kept[block.units.name] = torch.tensor([1])
    small = pyprune.apply(model, plan)
    for block in adapter_for(small).anatomy(small).blocks[2:4]:  # nothing but the unit is left of what they write
        torch.nn.init.zeros_(small.get_submodule(block.projection).bias)
    scores = scored(pyprune.OPTIN(band=1.0), small, texts())
    _, removal = by_hand(small, texts())
    for block in anatomy.blocks[2:4]:
        assert scores.values[block.units.name].shape == (1,)
        assert float(scores.values[block.units.name]) > float(removal.trajectory[block.units.name]) > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_in_half_precision_are_ranked_as_in_float64(dtype):
    rows, recipe = texts(), pyprune.OPTIN(band=1.0)
    model = tiny_model("bert", CLASSIFIER, dtype)
    narrow, wide = scored(recipe, model, rows), scored(recipe, model.double(), rows)
    for name, values in wide.values.items():
        assert spearmanr(values, narrow.values[name]).statistic > (0.9 if len(values) < 10 else 0.99)
    same = scored(pyprune.OPTIN(band=1.0, score_dtype="float64"), tiny_model("bert", CLASSIFIER, dtype), rows)
    for name, values in wide.values.items():
        torch.testing.assert_close(same.values[name], values, rtol=1e-6, atol=0)


def test_what_it_cannot_do_is_said_in_a_line():
    bad = ({"probes": 0}, {"tokens": 0}, {"band": 2}, {"around": 0}, {"lambda_c": -1}, {"heads": "all"})
    bad += ({"gram": "all"}, {"compat": "yes"}, {"tuning": "mask"}, {"damping": -1.0}, {"score_dtype": "int8"})
    for settings in bad:
        with pytest.raises(InputError, match=next(iter(settings))):
            pyprune.OPTIN(**settings)
    with pytest.raises(InputError, match="divides by lambda_c"):
        pyprune.OPTIN(compat="published", lambda_c=0)
    model = tiny_model("bert", CLASSIFIER)
    with pytest.raises(InputError, match="recipe='optin': not possible for the axis layers"):
        pyprune.score(model, data=texts(), recipe="optin", axes=["heads", "layers"])
    mixture = tiny_model("mixtral", "AutoModelForCausalLM")
    with pytest.raises(InputError, match=r"recipe='optin': not possible for .*experts"):
        pyprune.score(mixture, data=texts(), recipe="optin")
    with torch.no_grad():
        model.get_submodule(adapter_for(model).anatomy(model).blocks[2].projection).weight[0, 0] = torch.inf
    with pytest.raises(NumericsError, match=r"layers\.\d\.\w+, unit \d+: .*NaN or Inf"):
        scored(pyprune.OPTIN(), model, texts())
