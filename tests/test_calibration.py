"""Pruning on images, on images with text, on sound and on what a model decodes itself, from the data to the report."""

import json

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import pyprune
from pyprune.bench.fidelity import fidelity
from pyprune.calibration import calibration_data
from pyprune.cli.app import app
from pyprune.core.errors import InputError
from pyprune.core.scores import Scores
from pyprune.models.loading import load
from pyprune.report.prune import measure, table
from pyprune.testing.checkpoints import passages, tiny_checkpoint
from pyprune.testing.models import tiny_model
from pyprune.testing.pictures import write_pictures, write_processor


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of images, and beside it rows.jsonl with a text for each."""
    folder = tmp_path_factory.mktemp("data")
    paths = write_pictures(folder / "pictures")
    rows = [{"image": str(p.relative_to(folder)), "text": t} for p, t in zip(paths, passages(len(paths)), strict=True)]
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (folder / "texts.txt").write_text("\n\n".join(passages(48)))
    return folder


@pytest.fixture(autouse=True)
def _short_outputs(monkeypatch):
    """Tiny models do not end by themselves; how long they go on is tested in tests/capture/test_greedy.py."""
    monkeypatch.setattr("pyprune.capture.greedy._NEW_TOKENS", 8)


def checkpoint(folder, variant, head, size=12):
    path = tiny_checkpoint(folder / variant, variant, head)
    write_processor(path, json.loads((path / "config.json").read_text())["model_type"], size)
    return path


@pytest.mark.parametrize(
    ("variant", "head", "size", "tokens"),
    [
        ("vit", "AutoModelForImageClassification", 12, 10),
        ("vit", "AutoModel", 12, 10),
        ("swin", "AutoModelForImageClassification", 16, 64),
        ("dinov2", "AutoBackbone", 12, 10),
    ],
)
def test_a_folder_of_images_prunes_better_than_chance(tmp_path, data, variant, head, size, tokens):
    path = checkpoint(tmp_path, variant, head, size)
    budget, common = {"flops": "60%"}, {"samples": 24}
    result = pyprune.prune(path, budget, data / "pictures", **common)
    assert result.plan.cost(result.anatomy, "flops") <= 0.6 * result.anatomy.flops(tokens)
    assert result.plan.length == tokens
    assert len(result.calibration) == len(result.held_out) == 24
    found = fidelity(result.dense, result.pruned, result.held_out).values
    kind = "kl" if "kl" in found else "cosine"
    assert result.scores.meta["cotangent"] == ("sampled" if kind == "kl" else "embedding")
    others = []
    for seed in range(3):
        chance = {"recipe": "kwon", "criterion": "random", "tuning": "none"}
        plan = pyprune.prune(path, budget, data / "pictures", seed=seed, dry_run=True, **chance, **common).plan
        pruned = pyprune.apply(result.dense, plan)
        others.append(fidelity(result.dense, pruned, result.held_out).values[kind])
    assert found[kind] < min(others) if kind == "kl" else found[kind] > max(others)


def test_patches_are_scored_by_the_images(tmp_path, data):
    path, out = checkpoint(tmp_path, "deit", "DeiTForImageClassificationWithTeacher"), tmp_path / "small"
    command = ["--data", data / "pictures", "--axes", "tokens", "--flops", "80%", "--tuning", "none", "--samples", "24"]
    arguments = ["prune", str(path), "--out", str(out), *map(str, command)]
    refused = str(CliRunner().invoke(app, arguments).exception)
    assert refused.startswith("recipe='surgeon': not possible for the axis tokens; use recipe=\"kwon\" (--recipe kwon)")
    assert CliRunner().invoke(app, [*arguments, "--recipe", "kwon"]).exit_code == 0
    assert all(check.equal for check in pyprune.verify_checkpoint(out))
    found = pyprune.prune(
        path, {"flops": "80%"}, data / "pictures", samples=24, axes=["tokens"], recipe="kwon", tuning="none"
    )
    assert found.scores.meta["criterion"] == "fisher"
    kl = fidelity(found.dense, found.pruned, found.held_out).values["kl"]
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        chance = Scores({name: torch.rand(len(v), generator=generator) for name, v in found.scores.values.items()})
        plan = pyprune.plan(found.dense, chance, {"flops": 0.8}, axes=["tokens"], length=found.plan.length)
        assert kl < fidelity(found.dense, pyprune.apply(found.dense, plan), found.held_out).values["kl"]


def sound():
    generator = torch.Generator().manual_seed(0)
    return [{"input_features": torch.randn(5, 28, generator=generator)} for _ in range(24)]


CASES = {
    "clip": ("clip", "AutoModel", "rows.jsonl", {"input_ids", "pixel_values"}),
    "siglip": ("siglip", "AutoModel", "rows.jsonl", {"input_ids", "pixel_values"}),
    "sound": ("whisper", "AutoModelForAudioClassification", sound, {"input_features"}),
    "vilt": ("vilt", "ViltForQuestionAnswering", "rows.jsonl", {"input_ids", "pixel_values", "pixel_mask"}),
    "git": ("git", "GitForCausalLM", "rows.jsonl", {"input_ids", "pixel_values"}),
    "git writes": ("git", "GitForCausalLM", "pictures", {"input_ids", "pixel_values"}),
    "blip retrieval": ("blip", "BlipForImageTextRetrieval", "rows.jsonl", {"input_ids", "pixel_values"}),
    "blip answers": (
        "blip",
        "AutoModelForVisualQuestionAnswering",
        "rows.jsonl",
        {"input_ids", "pixel_values", "decoder_input_ids"},
    ),
    "image to text": ("vit-gpt2", "VisionEncoderDecoderModel", "pictures", {"pixel_values", "decoder_input_ids"}),
    "segmenter": ("segformer", "AutoModelForSemanticSegmentation", "pictures", {"pixel_values"}),
    "t5": ("t5", "AutoModelForSeq2SeqLM", "texts.txt", {"input_ids", "decoder_input_ids"}),
    "bart": ("bart", "AutoModelForSeq2SeqLM", "texts.txt", {"input_ids", "decoder_input_ids"}),
    "whisper": ("whisper", "AutoModelForSpeechSeq2Seq", sound, {"input_features", "decoder_input_ids"}),
}


@pytest.mark.parametrize("case", CASES)
def test_models_of_several_inputs(tmp_path, data, case):
    variant, head, given, inputs = CASES[case]
    path = checkpoint(tmp_path, variant, head, 28 if variant == "segformer" else 12)
    result = pyprune.prune(path, {"params": 0.6}, given() if callable(given) else data / given, samples=10)
    assert set(result.calibration.inputs[0]) == inputs
    assert result.plan.cost(result.anatomy, "params") <= 0.6 * result.anatomy.params()
    assert any(outcome.fitted for outcome in result.outcomes)
    assert all(outcome.after <= outcome.before + 1e-5 for outcome in result.outcomes if outcome.fitted)
    held_out = result.held_out or result.calibration
    untuned = fidelity(result.dense, pyprune.apply(result.dense, result.plan), held_out).values
    tuned = fidelity(result.dense, result.pruned, held_out).values
    assert tuned["kl"] < untuned["kl"] if "kl" in tuned else tuned["cosine"] > untuned["cosine"]


@pytest.mark.parametrize("recipe", ["kwon", "flap", "llm_pruner"])
@pytest.mark.parametrize("case", ["clip", "t5"])
def test_published_recipes(tmp_path, data, case, recipe):
    variant, head, given, _ = CASES[case]
    path = checkpoint(tmp_path, variant, head)
    result = pyprune.prune(path, {"params": 0.6}, data / given, samples=6, recipe=recipe)
    assert result.plan.cost(result.anatomy, "params") <= 0.6 * result.anatomy.params()


def test_padding_and_batches_change_no_score(data):
    """Text beside images, in batches of one and in larger ones."""
    model = tiny_model("clip", dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    rows = [
        {
            "pixel_values": torch.randn(3, 12, 12, generator=generator).double(),
            "input_ids": torch.randint(3, 99, (4 + s % 2,), generator=generator),
        }
        for s in range(6)
    ]
    whole = pyprune.score(model, rows, recipe="kwon").statistics
    for s, row in enumerate(rows):
        alone = pyprune.score(model, [row], recipe="kwon").statistics
        for name, gradients in alone.gradients.items():
            assert gradients.shape[0] == whole.draws
            if s == 0:  # random numbers belong to the sample's index
                torch.testing.assert_close(gradients, whole.gradients[name][: whole.draws])


def test_models_in_half_precision_take_images_too():
    model = tiny_model("vit", "AutoModelForImageClassification", dtype=torch.bfloat16)
    result = pyprune.prune(model, {"params": 0.6}, [{"pixel_values": torch.randn(3, 12, 12)} for _ in range(8)])
    assert result.pruned.dtype == torch.bfloat16


def test_a_processor_may_stand_for_the_tokenizer(tmp_path):
    from transformers import AutoImageProcessor

    write_processor(tmp_path, "vit")
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    images = [Image.new("RGB", (20, 16), (s, 0, 0)) for s in range(3)]
    samples, held_out = calibration_data(tiny_model("vit"), processor, images)
    assert held_out is None
    assert [tuple(row["pixel_values"].shape) for row in samples.inputs] == [(3, 12, 12)] * 3
    with pytest.raises(InputError, match="images and sound need a processor; pass it as tokenizer="):
        calibration_data(tiny_model("vit"), None, images)


def test_distillation_pads_what_it_mixes():
    teacher = tiny_model("bart", "AutoModelForSeq2SeqLM")
    generator = torch.Generator().manual_seed(0)
    rows = [
        {
            name: torch.randint(3, 99, (n,), generator=generator)
            for name, n in (("input_ids", 4 + s), ("decoder_input_ids", 7 - s))
        }
        for s in range(4)
    ]
    student = tiny_model("bart", "AutoModelForSeq2SeqLM", seed=1)
    _, done = pyprune.retrain(student, teacher, rows, method="full", targets="soft", batch_size=4, epochs=2)
    assert done.steps == 2


@pytest.mark.parametrize(
    ("variant", "head", "message"),
    [
        ("vit", "AutoModel", "ViTModel needs a folder of images"),
        ("clip", "AutoModel", "CLIPModel needs a .jsonl file whose rows have image and text"),
        ("whisper", "AutoModelForSpeechSeq2Seq", "WhisperForConditionalGeneration needs mappings with audio"),
        ("t5", "AutoModel", "T5Model does not run on input_ids alone .* give mappings with input_ids, decoder_input"),
    ],
)
def test_without_data_the_error_says_which(tmp_path, variant, head, message):
    model, tokenizer = load(tiny_checkpoint(tmp_path / "model", variant, head))
    with pytest.raises(InputError, match=message):
        calibration_data(model, tokenizer)


def test_refusals(tmp_path, data):
    bare = tiny_checkpoint(tmp_path / "bare", "vit")
    with pytest.raises(InputError, match=r"preprocessor_config\.json is missing"):
        pyprune.score(bare, data / "pictures")
    clip = checkpoint(tmp_path, "clip", "AutoModel")
    with pytest.raises(InputError, match=r"CLIPModel does not run on pixel_values alone .* image and text"):
        pyprune.score(clip, data / "pictures")
    (bare / "preprocessor_config.json").write_text("{")
    with pytest.raises(InputError, match="the processor cannot be read"):
        pyprune.score(bare, data / "pictures")
    with pytest.raises(InputError, match=r"ViTModel needs a folder of images.*, not '.*texts\.txt'"):
        pyprune.score(bare, data / "texts.txt")
    resnet = tiny_model("resnet", "AutoModelForImageClassification")
    rows = [{"pixel_values": torch.randn(3, 42, 42)} for _ in range(4)]
    with pytest.raises(InputError, match=r'convolution; use recipe="kwon" \(--recipe kwon\), criterion="fisher"'):
        pyprune.prune(resnet, {"params": 0.6}, rows)
    advised = {"recipe": "kwon", "criterion": "fisher", "tuning": "none"}
    assert pyprune.prune(resnet, {"params": 0.6}, rows, **advised).pruned is not None


def test_the_report(tmp_path, data):
    (data / "pictures" / "broken.png").write_bytes(b"no image")
    result = pyprune.prune(checkpoint(tmp_path, "vit", "AutoModel"), {"flops": 0.6}, data / "pictures", samples=40)
    report = measure(result, None)
    assert report["samples"] + report["held_out"] == 48
    assert [(x["batch"], x["length"]) for x in report["latency_ms"]] == [(1, 10), (16, 10)]
    assert all(check["equal"] for check in report["checks"])
    assert {"this plan, untuned", "this checkpoint"} == report["fidelity"].keys()
    assert "broken.png could not be read and were left out" in table(report)
