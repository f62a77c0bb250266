"""LFPR against what its publication does: a decoding step found by greedy passes, and gradients of explicit masks."""

import pytest
import torch

import pyprune
from pyprune.calibration import calibration_data
from pyprune.capture.masking import masked
from pyprune.core.batches import Samples
from pyprune.core.errors import InputError
from pyprune.core.stages import Stages
from pyprune.models.adapter import adapter_for
from pyprune.models.inputs import example_inputs
from pyprune.testing.models import tiny_model

STEPS = 5


def prompts(count=6, seed=0, lengths=(4, 6)):
    generator = torch.Generator().manual_seed(seed)
    return [{"input_ids": torch.randint(3, 99, (lengths[i % 2],), generator=generator)} for i in range(count)]


def next_logits(model, row, tokens):
    """Logits behind `tokens`, which the decoder has read or, of a decoder alone, the model itself."""
    name = "decoder_input_ids" if model.config.is_encoder_decoder else "input_ids"
    return model(**{k: v[None] for k, v in row.items()}, **{name: tokens[None]}).logits[0, -1]


def by_hand(model, anatomy, samples, step, batch):
    """{group: [S, size]}: greedy decoding of every sample, then the gradient of the largest logit at its step."""
    encodes = model.config.is_encoder_decoder
    rows, starts, steps, written = [], [], [], []
    for row in samples.inputs:
        start = torch.tensor([model.config.decoder_start_token_id]) if encodes else row.get("input_ids")
        start = torch.tensor([model.config.bos_token_id]) if start is None else start
        rows.append({k: v for k, v in row.items() if not k.startswith("decoder_") and (encodes or k != "input_ids")})
        tokens, peaks = start, []
        with torch.no_grad():
            for _ in range(STEPS):
                logits = next_logits(model, rows[-1], tokens)
                peaks.append(float(logits.max()))
                tokens = torch.cat([tokens, logits.argmax()[None]])
                if int(tokens[-1]) == model.config.eos_token_id:
                    break
        starts.append(len(start))
        written.append(tokens)
        steps.append(peaks.index(max(peaks)))
    if step == "median":
        groups = [sorted(steps[i : i + batch]) for i in range(0, len(steps), batch)]
        middle = [(g[(len(g) - 1) // 2] + g[len(g) // 2]) // 2 for g in groups]
        steps = [middle[i // batch] for i in range(len(steps))]
    found = {g.name: [] for g in anatomy.groups}
    for row, start, tokens, at in zip(rows, starts, written, steps, strict=True):
        masks = {g.name: torch.ones(g.size, dtype=torch.float64, requires_grad=True) for g in anatomy.groups}
        at = min(at, len(tokens) - start - 1)
        with masked(model, anatomy, masks), torch.enable_grad():
            peak = next_logits(model, row, tokens[: start + at]).max()
        for name, g in zip(masks, torch.autograd.grad(peak, list(masks.values())), strict=True):
            found[name].append(g)
    return {name: torch.stack(gradients) for name, gradients in found.items()}


@pytest.mark.parametrize("step", ["median", "own"])
@pytest.mark.parametrize(
    ("variant", "head"),
    [
        ("llama", "AutoModelForCausalLM"),
        ("gpt2", "AutoModelForCausalLM"),
        ("t5", "AutoModelForSeq2SeqLM"),
        ("bart", "AutoModelForSeq2SeqLM"),
    ],
)
def test_scores_are_squared_gradients_of_the_largest_logit_of_a_step(variant, head, step):
    model = tiny_model(variant, head, torch.float64).requires_grad_(False)
    for name in ("forced_bos_token_id", "forced_eos_token_id"):
        setattr(model.generation_config, name, None)
    anatomy, samples = adapter_for(model).anatomy(model), calibration_data(model, None, prompts())[0]
    expected = by_hand(model, anatomy, samples, step, 4)
    recipe = pyprune.LFPR(steps=STEPS, step=step, batch=4)
    scores = recipe.score(model, anatomy, samples, 0, Stages(True))
    for name, gradients in expected.items():
        torch.testing.assert_close(scores.values[name], gradients.square().sum(0), rtol=1e-4, atol=1e-12, msg=name)
    batched = pyprune.LFPR(steps=STEPS, step=step, batch=4, squared="batch")
    scores = batched.score(model, anatomy, samples, 0, Stages(True))
    for name, gradients in expected.items():
        sums = torch.stack([part.sum(0) for part in gradients.split(4)])
        torch.testing.assert_close(scores.values[name], sums.square().sum(0), rtol=1e-4, atol=1e-10, msg=name)


def test_published_scores_are_those_of_their_parts_without_dropout():
    model = tiny_model("llama", "AutoModelForCausalLM", torch.float64)
    anatomy, samples = adapter_for(model).anatomy(model), Samples(prompts())
    published = pyprune.LFPR(compat="published").score(model, anatomy, samples, 0, Stages(True))
    parts = pyprune.LFPR(squared="batch").score(model, anatomy, samples, 0, Stages(True))
    for name, values in parts.values.items():
        torch.testing.assert_close(published.values[name], values, rtol=1e-4, atol=1e-12, msg=name)


def test_published_scores_drop_the_same_in_every_pass():
    model = tiny_model("gpt2", "AutoModelForCausalLM", resid_pdrop=0.5)
    anatomy, samples = adapter_for(model).anatomy(model), Samples(prompts(lengths=(5, 5)))
    recipe = pyprune.LFPR(compat="published")
    first, second = (recipe.score(model, anatomy, samples, 0, Stages(True)) for _ in range(2))
    without = pyprune.LFPR(squared="batch").score(model, anatomy, samples, 0, Stages(True))
    name = next(iter(first.values))
    assert torch.equal(first.values[name], second.values[name])
    assert not torch.allclose(first.values[name], without.values[name], rtol=1e-2)
    assert not model.training


@pytest.mark.parametrize(("variant", "head"), [("bert", "AutoModelForSequenceClassification"), ("vit", None)])
def test_classifiers_have_one_step(variant, head):
    model = tiny_model(variant, head or "AutoModelForImageClassification", torch.float64).requires_grad_(False)
    size = getattr(model.config, "image_size", 0)
    rows = [{"pixel_values": torch.randn(3, size, size)} for _ in range(6)] if size else prompts()
    anatomy, samples = adapter_for(model).anatomy(model), calibration_data(model, None, rows)[0]
    scores = pyprune.LFPR().score(model, anatomy, samples, 0, Stages(True))
    expected = {g.name: torch.zeros(g.size, dtype=torch.float64) for g in anatomy.groups}
    for batch in (samples.collate([s]).on(model) for s in range(len(samples))):
        masks = {g.name: torch.ones(g.size, dtype=torch.float64, requires_grad=True) for g in anatomy.groups}
        with masked(model, anatomy, masks):
            peak = model(**batch.inputs).logits.max()
        for name, g in zip(masks, torch.autograd.grad(peak, list(masks.values())), strict=True):
            expected[name] += g.square()
    for name, values in expected.items():
        torch.testing.assert_close(scores.values[name], values, rtol=1e-4, atol=1e-12, msg=name)


@pytest.mark.parametrize(
    ("variant", "head"),
    [
        ("git", "GitForCausalLM"),
        ("blip-caption", "BlipForConditionalGeneration"),
        ("vit-gpt2", "VisionEncoderDecoderModel"),
        ("pix2struct", "AutoModelForImageTextToText"),
        ("whisper", "AutoModelForSpeechSeq2Seq"),
    ],
)
def test_whatever_writes_text_is_pruned(variant, head):
    model = tiny_model(variant, head)
    made = example_inputs(model, 4)
    given = (
        ("flattened_patches", "attention_mask") if "flattened_patches" in made else ("pixel_values", "input_features")
    )
    rows = [{k: v[s] for k, v in made.items() if k in given} for s in range(4)]
    result = pyprune.prune(model, {"params": 0.7}, data=rows, recipe="lfpr")
    assert result.plan.cost(result.anatomy, "params") <= 0.7 * result.anatomy.params()
    assert result.scores.meta["criterion"] == "lfpr"


def test_segments_of_a_prompt_are_left_out():
    model = tiny_model("bert-decoder", "AutoModelForCausalLM")
    rows = [{**row, "token_type_ids": torch.zeros_like(row["input_ids"])} for row in prompts()]
    found, expected = (pyprune.score(model, data=data, recipe="lfpr").values for data in (rows, prompts()))
    assert all(torch.equal(found[name], values) for name, values in expected.items())


def test_long_prompts_leave_room():
    model = tiny_model("gpt2", "AutoModelForCausalLM")
    rows = [{"input_ids": torch.randint(3, 99, (model.config.max_position_embeddings,))} for _ in range(2)]
    scores = pyprune.score(model, data=rows, recipe="lfpr")
    assert all(torch.isfinite(values).all() for values in scores.values.values())


def test_what_it_cannot_do_is_said_in_a_line():
    with pytest.raises(InputError, match="needs logits, and BertModel has none: use recipe='kwon'"):
        pyprune.score(tiny_model("bert"), data=prompts(), recipe="lfpr")
    for settings in ({"criterion": "magnitude"}, {"cotangent": "labels"}, {"draws": 2}):
        with pytest.raises(InputError, match="has one score"):
            pyprune.LFPR(**settings)
    for settings in ({"steps": 0}, {"batch": 0}, {"step": "last"}, {"squared": "all"}, {"compat": "yes"}):
        with pytest.raises(InputError, match=next(iter(settings))):
            pyprune.LFPR(**settings)
