"""Estimates from random probes against exact distances: on average, in their errors, and in the order of real units."""

import pytest
import torch
from scipy.stats import spearmanr
from test_leave_one_out import chosen, prepared

from pyprune.calibration import calibration_data
from pyprune.capture.leave_one_out import leave_one_out
from pyprune.capture.probes import probe
from pyprune.core.errors import InputError, NumericsError
from pyprune.models.adapter import adapter_for
from pyprune.models.loading import load
from pyprune.testing.models import tiny_model

PROBES = 100


def small_units(variant, head, scale=0.01, **options):
    """A model whose units change little each, so that the second order is all there is."""
    model, anatomy, batches = prepared(variant, head, 3, **options)
    with torch.no_grad():
        for block in anatomy.blocks:
            projection = model.get_submodule(block.projection)
            projection.weight.mul_(scale)
            if getattr(projection, "bias", None) is not None:
                projection.bias.zero_()  # else all tokens' features are nearly parallel
    return model, anatomy, batches


def within(found, exact, error):
    """Five standard errors, which units of one probe share, and the orders above the second."""
    assert (error > 0).all()
    assert ((found - exact).abs() <= 5 * error + 0.3 * exact).all()
    assert abs(float((found - exact).sum())) <= float(4 * error.sum() + 0.05 * exact.sum())


@pytest.mark.parametrize(
    ("variant", "head", "most_classes", "joint"),
    [
        ("bert", "AutoModelForSequenceClassification", 32, True),
        ("bert", "AutoModelForSequenceClassification", 0, False),
        ("llama", "AutoModelForCausalLM", 32, False),
        ("vit", "AutoModelForImageClassification", 32, False),
        ("distilbert", "AutoModel", 0, True),
    ],
)
def test_estimates_are_right_on_average(variant, head, most_classes, joint):
    model, anatomy, batches = small_units(variant, head)
    units, causal = chosen(anatomy, 100), model.can_generate()
    exact = leave_one_out(model, anatomy, batches, units, joint, causal)
    found = probe(model, anatomy, batches, units, PROBES, 1, joint, causal, most_classes)
    last = {b.units.name for b in anatomy.blocks if b.layer_path == anatomy.layers[-1]}
    for name in units:
        if name not in last:  # whose one neuron is no small part of what the layer writes
            within(found.trajectory[name], exact.trajectory[name], found.trajectory_error[name])
        if most_classes and not causal:
            torch.testing.assert_close(
                found.answer[name], exact.answer[name], rtol=0.2, atol=1e-3 * exact.answer[name].max()
            )
            assert not found.answer_error[name].any()
        else:
            within(found.answer[name], exact.answer[name], found.answer_error[name])


def test_a_layers_own_features_do_not_count_but_in_the_last():
    model, anatomy, batches = small_units("bert", "AutoModelForSequenceClassification")
    last = anatomy.blocks[-1]
    with torch.no_grad():
        model.get_submodule(last.projection).weight.zero_()
    found = probe(model, anatomy, batches, [b.units.name for b in anatomy.blocks], 4)
    for block in anatomy.blocks:
        silent = block.layer_path in anatomy.layers[-2:]
        most = float(found.trajectory[block.units.name].max())
        assert most < 1e-20 if silent else most > 1e-9


def test_errors_are_what_seeds_differ_by():
    model, anatomy, batches = small_units("bert", "AutoModelForSequenceClassification")
    name = anatomy.blocks[1].units.name
    runs = [probe(model, anatomy, batches, [name], 16, seed) for seed in range(16)]
    spread = torch.stack([run.trajectory[name] for run in runs]).std(0)
    said = torch.stack([run.trajectory_error[name] for run in runs]).square().mean(0).sqrt()
    assert 0.7 < float((spread / said).mean()) < 1.4
    single = probe(model, anatomy, batches, [name], 1)
    assert (single.trajectory_error[name] > 0).all()


def test_estimates_do_not_depend_on_batches():
    model = tiny_model("bert", "AutoModelForTokenClassification", torch.float64).requires_grad_(False)
    anatomy = adapter_for(model).anatomy(model)
    samples = calibration_data(model, None, [{"input_ids": torch.arange(3, 3 + n)} for n in (5, 8, 8, 6)])[0]
    names = [anatomy.blocks[0].units.name, anatomy.blocks[1].units.name]
    whole = [samples.collate(range(4))]
    alone = [samples.collate([s]) for s in (2, 0, 3, 1)]
    a, b = (probe(model, anatomy, batches, names, 3, 5) for batches in (whole, alone))
    for name in names:
        torch.testing.assert_close(a.trajectory[name], b.trajectory[name], rtol=1e-8, atol=0)
        torch.testing.assert_close(a.answer[name], b.answer[name], rtol=1e-8, atol=0)


def test_bad_input():
    model, anatomy, batches = prepared("bert", "AutoModelForSequenceClassification")
    name = anatomy.blocks[1].units.name
    with pytest.raises(InputError, match="probes=0 must be at least 1"):
        probe(model, anatomy, batches, [name], 0)
    with torch.no_grad():
        model.get_submodule(anatomy.blocks[3].projection).weight.fill_(torch.nan)
    with pytest.raises(NumericsError, match=f"{name}, unit 0: gradients are NaN or Inf"):
        probe(model, anatomy, batches, [name], 2)


def real_classifier():
    """MiniLM with a random head of eight classes, and four descriptions of packages."""
    import transformers

    encoder, tokenizer = load("sentence-transformers/all-MiniLM-L6-v2")
    encoder.config.num_labels = 8
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_config(encoder.config)
    model.base_model.load_state_dict(encoder.state_dict())
    with torch.no_grad():
        model.classifier.weight.normal_(0, 0.3)
    lines = ("tests", "interpreter of a small language", "fast image viewer for the desktop", "fonts for old scripts")
    rows = [{"input_ids": torch.tensor(tokenizer(line)["input_ids"])} for line in lines]
    return model.eval().requires_grad_(False), rows


@pytest.mark.slow
def test_real_neurons_are_ranked_as_by_exact_distances():
    model, rows = real_classifier()
    anatomy = adapter_for(model).anatomy(model)
    batches = calibration_data(model, None, rows)[0].batches(max_padding=0.5)
    generator = torch.Generator().manual_seed(0)
    groups = [g for g in anatomy.groups if g.axis == "neurons"]
    units = {g.name: torch.randperm(g.size, generator=generator)[:12].sort().values for g in groups}
    found = probe(model, anatomy, batches, units, 128)
    exact = leave_one_out(model.double(), anatomy, batches, units)

    def flat(part):
        return torch.cat([part[name][at] for name, at in units.items()])

    balance = (flat(exact.trajectory).log() - flat(exact.answer).log()).mean().exp()

    def scores(removal):
        return flat(removal.trajectory) + 0.1 * balance * flat(removal.answer)

    assert spearmanr(scores(found), scores(exact)).statistic >= 0.98
