"""Changes carried through models against whole forward passes without each unit, in float64."""

import copy

import pytest
import torch
from scipy.stats import spearmanr
from unrounded import Unrounded

from pyprune.calibration import calibration_data
from pyprune.capture.deltas import NoRule
from pyprune.capture.leave_one_out import leave_one_out
from pyprune.capture.one_by_one import one_by_one
from pyprune.core.errors import InputError, NumericsError
from pyprune.models.adapter import adapter_for
from pyprune.models.inputs import example_inputs
from pyprune.testing.models import tiny_model

FAMILIES = [
    ("bert", "AutoModelForSequenceClassification"),
    ("bert", "AutoModelForQuestionAnswering"),
    ("roberta", "AutoModelForTokenClassification"),
    ("distilbert", "AutoModel"),
    ("electra", "AutoModelForSequenceClassification"),
    ("deberta-v2-relative", "AutoModelForSequenceClassification"),
    ("modernbert", "AutoModelForMaskedLM"),
    ("llama", "AutoModelForCausalLM"),
    ("qwen3", "AutoModelForCausalLM"),
    ("gemma3", "AutoModelForCausalLM"),
    ("gpt2", "AutoModelForCausalLM"),
    ("gpt_neox", "AutoModelForCausalLM"),
    ("opt", "AutoModelForCausalLM"),
    ("t5", "AutoModelForSeq2SeqLM"),
    ("bart", "AutoModelForSeq2SeqLM"),
    ("vit", "AutoModelForImageClassification"),
    ("swin", "AutoModelForImageClassification"),
    ("clip", "AutoModel"),
    ("git", "GitForCausalLM"),
]


def prepared(variant, head, samples=2, dtype=torch.float64, **overrides):
    model = tiny_model(variant, head, dtype, **overrides).requires_grad_(False)
    made = example_inputs(model, samples)
    rows = [{k: v[s] for k, v in made.items()} for s in range(samples)]
    if "input_ids" in made and len(made) == 1:
        rows[0] = {"input_ids": rows[0]["input_ids"][:-3]}  # and with padding
    data = calibration_data(model, None, rows)[0]
    return model, adapter_for(model).anatomy(model), data.batches(max_padding=0.5)


def chosen(anatomy, most=2):
    return {g.name: torch.arange(g.size)[-most:] for g in anatomy.groups if g.size}


def agree(found, expected, units):
    for name, at in units.items():
        for part in ("trajectory", "answer"):
            a, b = getattr(found, part)[name][at], getattr(expected, part)[name][at]
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-18, msg=lambda m, w=(name, part): f"{w}: {m}")


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize(("variant", "head"), FAMILIES)
def test_families(variant, head):
    model, anatomy, batches = prepared(variant, head)
    units, causal = chosen(anatomy), model.can_generate()
    joint = variant in ("bert", "llama", "vit")
    with Unrounded():
        expected = one_by_one(model, anatomy, batches, units, joint, causal)
        found = leave_one_out(model, anatomy, batches, units, joint, causal)
    agree(found, expected, units)
    assert all(float(expected.answer[name][at].min()) > 0 for name, at in units.items())


def test_every_unit_of_both_kinds_of_gram_matrix():
    model, anatomy, _ = prepared("bert", "AutoModelForSequenceClassification")
    rows = [{"input_ids": torch.arange(3, 3 + n)} for n in (4, 7, 7)]
    batches = calibration_data(model, None, rows)[0].batches()
    assert len(batches) == 2
    units = chosen(anatomy, 100)
    results = []
    for joint in (False, True):
        expected = one_by_one(model, anatomy, batches, units, joint)
        for engine in ("deltas", "forwards"):
            agree(leave_one_out(model, anatomy, batches, units, joint, engine=engine), expected, units)
        results.append(expected)
    name = anatomy.blocks[1].units.name
    assert (results[1].trajectory[name] > results[0].trajectory[name]).all()  # with the products between samples


def test_rows_drawn_for_each_unit_and_layer():
    """On average over draws, pairs of 6 of 12 rows are 6 * 5 of 12 * 11 of all: M' - M has nothing on its diagonal."""
    model, anatomy, _ = prepared("bert", "AutoModelForSequenceClassification")
    rows = [{"input_ids": torch.arange(3, 9)}, {"input_ids": torch.arange(20, 26)}]
    batches = calibration_data(model, None, rows)[0].batches()
    name = anatomy.blocks[3].units.name
    units = {name: torch.arange(24)}
    whole = leave_one_out(model, anatomy, batches, units, joint=True).trajectory[name]
    every = leave_one_out(model, anatomy, batches, units, joint=True, rows=12, seed=3).trajectory[name]
    torch.testing.assert_close(every, whole)
    draws = [leave_one_out(model, anatomy, batches, units, joint=True, rows=6, seed=seed) for seed in range(6)]
    shares = torch.stack([draw.trajectory[name] / whole for draw in draws])
    assert (shares < 1).all()
    assert len(shares.unique()) == shares.numel()
    assert abs(float(shares.mean()) - 30 / 132) < 4 * float(shares.std()) / shares.numel() ** 0.5


def test_layers_that_count():
    """Those behind a unit's own; of the last its own alone. Features of others are never compared."""
    model, anatomy, batches = prepared("bert", "AutoModelForSequenceClassification")
    units = chosen(anatomy, 1)
    before = leave_one_out(model, anatomy, batches, units)
    last = [block for block in anatomy.blocks if block.layer_path == anatomy.layers[-1]]
    # No layer behind: what the last one writes is all that is left of the trajectory of the one before.
    with torch.no_grad():
        model.get_submodule(last[-1].projection).weight.zero_()
    after = leave_one_out(model, anatomy, batches, units)
    for block in anatomy.blocks:
        unit = after.trajectory[block.units.name][-1]
        silent = block.layer_path in anatomy.layers[-2:]
        assert (float(unit) == 0) == silent
        assert float(before.trajectory[block.units.name][-1]) > 0


def test_bf16_keeps_the_ranking_that_plain_passes_lose():
    model, anatomy, batches = prepared(
        "bert", "AutoModelForSequenceClassification", 4, torch.bfloat16, hidden_size=64, intermediate_size=256
    )
    with torch.no_grad():  # weights of a trained model's size, where one neuron of many changes little
        for name, p in model.named_parameters():
            if p.dim() == 2 and "embeddings" not in name:
                p.normal_(0, 0.06)
    units = {anatomy.blocks[1].units.name: torch.arange(0, 256, 3), anatomy.blocks[3].units.name: torch.arange(20)}
    wide = copy.deepcopy(model).double()

    def flat(removal):
        return torch.cat([removal.trajectory[name][at] for name, at in units.items()])

    truth = flat(leave_one_out(wide, anatomy, batches, units))
    carried = flat(leave_one_out(model, anatomy, batches, units))
    plain = flat(leave_one_out(model, anatomy, batches, units, engine="forwards"))
    assert spearmanr(truth, carried).statistic >= 0.999
    assert float(((carried - truth).abs() / truth).median()) <= 0.01
    assert spearmanr(truth, plain).statistic < 0.99


def test_code_that_changes_cannot_follow_is_run_again():
    model, anatomy, batches = prepared("mask2former", "AutoModel")
    units = chosen(anatomy, 1)
    with pytest.raises(NoRule, match="decides by value"):
        leave_one_out(model, anatomy, batches, units)
    some = dict(list(units.items())[:3])
    expected = one_by_one(model, anatomy, batches, some)
    agree(leave_one_out(model, anatomy, batches, some, engine="forwards"), expected, some)


def test_nothing_is_left_behind():
    model, anatomy, batches = prepared("bert", "AutoModelForSequenceClassification")
    before = model(**batches[0].inputs).logits
    leave_one_out(model, anatomy, batches, chosen(anatomy, 1))
    assert torch.equal(model(**batches[0].inputs).logits, before)
    assert not any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in model.modules())


def test_what_is_not_finite_names_its_unit():
    model, anatomy, batches = prepared("bert", "AutoModelForSequenceClassification")
    block = anatomy.blocks[1]
    with torch.no_grad():
        model.get_submodule(block.projection).weight[:, 3] = 1e200
    with pytest.raises(NumericsError, match=f"{block.units.name}, unit 3: .*NaN or Inf"):
        leave_one_out(model, anatomy, batches, {block.units.name: torch.tensor([3])})


def test_blocks_without_a_projection_are_refused():
    model, anatomy, batches = prepared("resnet", "AutoModelForImageClassification")
    with pytest.raises(InputError, match="features of layers: not possible"):
        leave_one_out(model, anatomy, batches, chosen(anatomy, 1))
