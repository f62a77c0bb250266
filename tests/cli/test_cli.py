"""The command line as a user meets it: what it writes, what it prints, and one line with exit code 2 for bad input."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from fresh import context, fresh, sizes, stalled
from refusals import refuse
from safetensors.torch import load_file, save_file

from pyprune.models.adapter import adapter_for
from pyprune.testing.checkpoints import tiny_checkpoint
from pyprune.testing.models import random_plan, tiny_model
from pyprune.testing.pictures import write_pictures, write_processor

SAMPLES = ["--samples", "8"]


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("models") / "dense")


@pytest.fixture
def text(dense):
    return str(dense.parent / "passages.txt")


def test_prune_writes_a_checkpoint_that_loads_and_reports_what_it_measured(run, dense, text):
    code, out, _ = run("prune", dense, "--data", text, "--out", "small", "--flops", "0.6", "--json", *SAMPLES)
    assert code == 0
    report = json.loads(out)
    assert report["blocks"]["flops"][1] <= 0.6 * report["blocks"]["flops"][0]
    assert report["model"]["params"][1] < report["model"]["params"][0]
    assert all(check["equal"] for check in report["checks"])
    assert {"this plan, untuned", "this checkpoint"} <= report["fidelity"].keys()
    assert {x["batch"] for x in report["latency_ms"]} == {1, 32}
    assert [s["name"] for s in report["stages"]][:2] == ["load", "score"]
    assert not Path("small.partial").exists()
    assert json.loads(Path("small/pyprune_report.json").read_text()) == report
    assert fresh(sizes, "AutoModel", [Path("small").absolute()], "pyprune") == [report["model"]["params"][1]]
    assert run("verify", "small")[0] == 0
    refuse(run, "verify", "small", "--dtype", "bfloat16", says="the dtype that it is stored in")


def test_tables_name_everything(run, dense, text):
    code, out, _ = run("prune", dense, "--data", text, "--out", "small", "--flops", "60%", "--compare", *SAMPLES)
    assert code == 0
    size = ("parameters, blocks", "FLOPs, model", "latency 1x40", "latency 32x40")
    tuned = ("kwon: search", "+ rearrangement", "+ mask tuning", "search, refit", "this checkpoint")
    for words in (*size, *tuned, "peak MiB", "BertModel.from_pretrained('small')"):
        assert words in out, words


def test_blocks_without_a_bias_are_told_in_one_line(run, tmp_path):
    llama = tiny_checkpoint(tmp_path / "models" / "llama", "llama", "AutoModelForCausalLM")
    data = ("--data", llama.parent / "passages.txt", *SAMPLES)
    code, out, _ = run("prune", llama, *data, "--out", "small", "--recipe", "flap", "--flops", "50%")
    assert code == 0
    (line,) = [line for line in out.splitlines() if "no bias" in line]
    assert line.startswith("not tuned: 6 of 6 blocks: ")
    assert "refit" in line


def test_score_plan_prune_in_steps_equals_one_run(run, dense, text):
    assert run("prune", dense, "--data", text, "--out", "once", "--flops", "0.6", "--quiet", *SAMPLES)[0] == 0
    assert run("score", dense, "--data", text, "--out", "s.safetensors", "--quiet", *SAMPLES)[0] == 0
    assert run("plan", dense, "--scores", "s.safetensors", "--flops", "0.6", "--out", "p.json")[0] == 0
    assert run("prune", dense, "--data", text, "--plan", "p.json", "--out", "steps", "--quiet", *SAMPLES)[0] == 0
    once, steps = load_file("once/model.safetensors"), load_file("steps/model.safetensors")
    assert once.keys() == steps.keys()
    assert all(torch.equal(once[k], steps[k]) for k in once)


def test_an_edited_plan_is_applied(run, dense, text):
    run("score", dense, "--data", text, "--out", "s.safetensors", "--quiet", *SAMPLES)
    run("plan", dense, "--scores", "s.safetensors", "--flops", "0.6", "--out", "p.json", "--quiet")
    plan = json.loads(Path("p.json").read_text())
    plan["groups"]["layers.1.neurons"]["keep"] = [0, 5, 7]
    Path("p.json").write_text(json.dumps(plan))
    assert run("prune", dense, "--data", text, "--plan", "p.json", "--out", "small", "--quiet", *SAMPLES)[0] == 0
    assert load_file("small/model.safetensors")["encoder.layer.1.output.dense.weight"].shape[1] == 3


def test_dry_run_explains_and_writes_nothing(run, dense, text):
    code, out, _ = run("prune", dense, "--data", text, "--out", "small", "--flops", "0.5", "--dry-run", *SAMPLES)
    assert code == 0
    assert "layers.0.heads" in out
    assert list(Path.cwd().iterdir()) == []
    assert run("prune", dense, "--data", text, "--flops", "0.5", "--dry-run", "--quiet", *SAMPLES)[:2] == (0, "")


def test_kept_blocks_axes_and_multiples(run, dense, text):
    arguments = ["prune", dense, "--data", text, "--flops", "0.8", "--dry-run", "--json", *SAMPLES]
    code, out, _ = run(*arguments, "--keep", "layers.0.*", "--keep", "*.neurons")
    kept = json.loads(out)["kept"]
    assert code == 0
    whole = json.loads(run(*arguments[:5], "1.0", *arguments[6:])[1])["kept"]
    assert all(kept[name] == size for name, size in whole.items() if name.startswith("layers.0") or "neurons" in name)
    assert kept != whole
    code, out, _ = run(*arguments, "--axes", "neurons", "--multiple-of", "4")
    kept = json.loads(out)["kept"]
    assert all(kept[name] == size for name, size in whole.items() if "heads" in name)
    assert all(count % 4 == 0 for name, count in kept.items() if "neurons" in name)


def test_layers_and_width_from_scores_to_checkpoint(run, dense, text, tmp_path):
    scores, chosen = tmp_path / "scores.safetensors", ["--axes", "neurons,layers,hidden"]
    weights = ["--recipe", "kwon", "--criterion", "magnitude"]
    code, _, _ = run("score", dense, "--data", text, "--out", scores, *weights, *chosen)
    assert code == 0
    code, out, _ = run("plan", dense, "--scores", scores, "--recipe", "kwon", "--flops", "40%", *chosen)
    assert code == 0
    assert "hidden " in out
    assert "layers " in out
    small = tmp_path / "small"
    given = ["prune", dense, "--data", text, "--flops", "40%", "--out", small, *weights, *chosen]
    code, out, err = run(*given, "--tuning", "none", "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["blocks"]["flops"][1] <= 0.4 * report["blocks"]["flops"][0]
    assert all(check["equal"] for check in report["checks"])
    assert run("verify", small)[0] == 0
    code, _, err = run(*given, "--overwrite")
    assert (code, "tuning='refit': not possible for the axis layers" in err) == (2, True)
    code, _, err = run("score", dense, "--data", text, "--out", tmp_path / "other", "--axes", "hidden")
    assert (code, "recipe='surgeon': not possible for the axis hidden" in err) == (2, True)


def test_a_recipe_that_plans_on_data(run, dense, text):
    given = ["prune", dense, "--data", text, "--out", "small", "--recipe", "kprune", *SAMPLES]
    code, out, _ = run(*given, "--flops", "0.6", "--json")
    assert code == 0
    report = json.loads(out)
    assert report["blocks"]["flops"][1] <= 0.6 * report["blocks"]["flops"][0]
    assert [s["name"] for s in report["stages"]][:4] == ["load", "plan", "slice", "tune"]
    assert not Path("small.partial").exists()
    refuse(
        run, "score", dense, "--data", text, "--out", "x", "--recipe", "kprune", says="scores blocks while it prunes"
    )
    refuse(run, *given, "--flops", "0.9", "--deploy", "uniform", "--overwrite", says="deploy='uniform': not possible")


def test_verify_a_dense_model(run, dense, tmp_path):
    code, out, _ = run("verify", dense, "--keep", "0.5", "--seed", "3")
    assert code == 0
    assert out.startswith("axes: heads, qk_dims, vo_dims, neurons, layers, hidden, vocab\nmasked = sliced")
    assert "sliced = reloaded" in out
    code, out, _ = run("verify", tiny_checkpoint(tmp_path / "models" / "mixtral", "mixtral"))
    assert code == 0
    axes = "query_heads, qk_dims, vo_dims, experts, neurons, layers, vocab, kv_groups"
    assert out.startswith(f"axes: {axes}\nnot tried: axis 'hidden' of MixtralModel: it has")
    known = json.loads(run("verify", dense, "--axes", "hidden", "--json")[1])[0]["axes"]
    assert known == ["heads", "neurons", "hidden"]


def test_verify_notices_a_changed_checkpoint(run, dense, text):
    run("prune", dense, "--data", text, "--out", "small", "--quiet", *SAMPLES)
    weights = load_file("small/model.safetensors")
    weights["encoder.layer.2.output.dense.bias"][0] += 1e-2  # the same for all would vanish in the norm
    save_file(weights, "small/model.safetensors", {"format": "pt"})
    code, out, _ = run("verify", "small")
    assert code == 1
    assert "DIFFERENT" in out


def test_info_lists_every_op_and_backend(run):
    code, out, _ = run("info", "--json")
    assert code == 0
    rows = {(row["op"], row["backend"]): row for row in json.loads(out)["ops"]}
    assert rows["prod_reduce", "torch"]["available"]
    assert all(row["available"] or row["reason"] for row in rows.values())


@pytest.mark.parametrize(
    ("flops", "says"),
    [
        ("0", "above 0"),
        ("-1", "number"),
        ("1.5", "share"),
        ("nan", "number"),
        ("5Q", "suffix"),
        ("150%", "share"),
        ("1e-9", "smallest feasible"),
        ("inf", "number"),
    ],
)
def test_bad_budgets(run, dense, text, flops, says):
    refuse(run, "prune", dense, "--data", text, "--out", "small", f"--flops={flops}", *SAMPLES, says=says)


def test_bad_data(run, dense):
    refuse(run, "prune", dense, "--data", "nowhere.txt", "--out", "small", says="nowhere.txt")
    Path("empty.txt").write_text("")
    refuse(run, "prune", dense, "--data", "empty.txt", "--out", "small", says="no text")
    Path("binary.txt").write_bytes(bytes(range(256)))
    refuse(run, "prune", dense, "--data", "binary.txt", "--out", "small", says="not UTF-8")
    Path("rows.jsonl").write_text('{"text": "fine"}\n{"txt": 1}\n')
    refuse(run, "prune", dense, "--data", "rows.jsonl", "--out", "small", says="line 2")


def test_bad_models(run, dense, text, tmp_path):
    refuse(run, "prune", "./missing", "--data", text, "--out", "small", says="no such directory")
    other = tiny_copy(dense, "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "model_type": "unheard-of"}))
    refuse(run, "prune", other, "--data", text, "--out", "small", says="llama")
    torn = tiny_copy(dense, "torn")
    whole = (torn / "model.safetensors").read_bytes()
    (torn / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    refuse(run, "prune", torn, "--data", text, "--out", "small", says="model.safetensors")
    sick = tiny_copy(dense, "sick")
    weights = load_file(sick / "model.safetensors")
    weights["encoder.layer.1.output.dense.weight"][2, 3] = float("nan")
    save_file(weights, sick / "model.safetensors", {"format": "pt"})
    refuse(run, "prune", sick, "--data", text, "--out", "small", says="encoder.layer.1.output.dense.weight")


@pytest.mark.parametrize(
    ("variant", "head", "says"),
    [
        ("vit", "AutoModel", "ViTModel needs a folder of images, a .jsonl file whose rows have image, or mappings"),
        ("clip", "AutoModel", "CLIPModel needs a .jsonl file whose rows have image and text, or mappings"),
        ("t5", "AutoModel", "T5Model does not run on input_ids alone ("),
        ("whisper", "AutoModelForSpeechSeq2Seq", "WhisperForConditionalGeneration needs mappings with audio"),
    ],
)
def test_models_that_want_more_than_text(run, variant, head, says, tmp_path):
    model = tiny_checkpoint(tmp_path / "model", variant, head)
    text = tmp_path / "passages.txt"
    dense = tiny_model(variant, head)
    random_plan(adapter_for(dense).anatomy(dense)).save(tmp_path / "plan.json")
    assert run("verify", model, "--quiet")[0] == 0
    for how in (["--flops", "60%"], ["--plan", "plan.json", "--tuning", "none"]):
        refuse(run, "prune", model, "--data", text, "--out", "small", *how, says=says)
    refuse(run, "score", model, "--data", text, "--out", "s.safetensors", says=says)


def test_a_folder_of_images(run, tmp_path):
    model = tiny_checkpoint(tmp_path / "vit", "vit", "AutoModelForImageClassification")
    refuse(run, "prune", model, "--data", tmp_path, "--out", "small", says=f"{tmp_path} holds no images")
    write_pictures(tmp_path / "pictures", 16)
    refuse(run, "prune", model, "--data", "pictures", "--out", "small", says="preprocessor_config.json is missing")
    write_processor(model, "vit")
    (tmp_path / "pictures" / "broken.webp").write_bytes(b"no image")
    code, out, _ = run("prune", model, "--data", "pictures", "--flops", "60%", "--out", "small", *SAMPLES)
    assert code == 0
    assert "fidelity to the dense model on" in out
    assert Path("small/preprocessor_config.json").exists()
    assert run("verify", "small")[0] == 0
    code, out, _ = run("score", "small", "--data", "pictures", "--out", "s.safetensors", "--samples", "20")
    assert code == 0
    assert "broken.webp could not be read and were left out" in out


def tiny_copy(dense, name):
    import shutil

    return Path(shutil.copytree(dense, Path.cwd() / name))


def test_bad_options(run, dense, text):
    arguments = ["prune", dense, "--data", text, "--out", "small"]
    refuse(run, *arguments, "--device", "abacus", says="abacus")
    refuse(run, *arguments, "--device", "meta", says="device='meta' cannot be used here")
    refuse(run, *arguments, "--dtype", "int7", says="int7")
    refuse(run, *arguments, "--score-dtype", "int8", says="score_dtype='int8'")
    refuse(run, *arguments, "--recipe", "alchemy", says="kwon")
    refuse(run, *arguments, "--recipe", "kwon", "--criterion", "alchemy", says="fisher")
    refuse(run, *arguments, "--criterion", "fisher", says="no setting")
    refuse(run, *arguments, "--tuning", "alchemy", says="refit")
    refuse(run, *arguments, "--length", "0", says="length")
    refuse(run, *arguments, "--samples", "0", says="samples")
    refuse(run, *arguments, "--keep", "decoder.*", says="fits no block of the model")
    refuse(run, *arguments, "--axes", "heads,kv_groups", says="the model has heads, hidden, layers, neurons")
    refuse(run, *arguments, "--multiple-of", "0", says="multiple_of=0 must be 1 or more")


def test_bad_plan_and_score_files(run, dense, text):
    prune = ["prune", dense, "--data", text, "--out", "small"]
    refuse(run, *prune, "--plan", "missing.json", says="no such file")
    refuse(run, *prune, "--plan", ".", says="is a directory")
    for option, value in (("length", 9), ("floor", 1), ("criterion", "magnitude"), ("score-dtype", "bfloat16")):
        given = ("--recipe", "kwon", "--plan", "missing.json", f"--{option}", value)
        refuse(run, *prune, *given, says=f"{option.replace('-', '_')}: of no account with a plan")
    assert run("score", dense, "--data", text, "--out", "s.safetensors", "--quiet", *SAMPLES)[0] == 0
    plan = ["plan", dense, "--scores", "s.safetensors", "--flops", "0.6", "--out"]
    refuse(run, *plan, "nowhere/p.json", says="does not exist")
    refuse(run, *plan, ".", says="is a directory")
    refuse(run, *plan, "s.safetensors", says="--overwrite")
    refuse(run, "score", dense, "--data", text, "--out", "nowhere/s.safetensors", says="does not exist")


def test_the_default_output_is_named_after_the_model(run, dense, text, monkeypatch):
    model = tiny_copy(dense, "mine")
    monkeypatch.chdir(model)
    assert run("prune", ".", "--data", text, "--quiet", *SAMPLES)[0] == 0
    assert (model / "mine-pruned" / "config.json").exists()


def test_a_full_output_directory_is_left_alone(run, dense, text):
    Path("small").mkdir()
    Path("small/precious.txt").write_text("keep me")
    refuse(run, "prune", dense, "--data", text, "--out", "small", *SAMPLES, says="--overwrite")
    assert run("prune", dense, "--data", text, "--out", "small", "--overwrite", "--quiet", *SAMPLES)[0] == 0
    assert not Path("small/precious.txt").exists()
    assert Path("small/config.json").exists()
    assert [p.name for p in Path.cwd().iterdir()] == ["small"]


def test_the_model_itself_is_never_overwritten(run, dense, text):
    model = tiny_copy(dense, "mine")
    refuse(run, "prune", model, "--data", text, "--out", "./mine", "--overwrite", says="out='mine' is the model itself")


def test_a_folder_that_only_looks_like_stage_results_is_left_alone(run, dense, text):
    Path("small.partial").mkdir()
    Path("small.partial/precious.txt").write_text("keep me")
    refuse(run, "prune", dense, "--data", text, "--out", "small", *SAMPLES, says="precious.txt")


def test_an_explicit_backend_that_is_missing(run, dense, text, monkeypatch):
    monkeypatch.setenv("PYPRUNE_BACKEND", "cuda")
    code, _, err = run("prune", dense, "--data", text, "--out", "small", "--quiet", *SAMPLES)
    assert code == 2
    assert err.count("pyprune: error:") == 1
    assert "cuda" in err
    assert not Path("small").exists()


def test_long_passages_are_cut_with_a_notice(run, dense, text):
    Path("long.txt").write_text(
        Path(text).read_text() + "\n\n" + " ".join(["w1"] * 500) + "\n\n" + " ".join(["w2"] * 400)
    )
    given = [dense, "--data", "long.txt", "--samples", "19"]
    for verb in (["prune", "--out", "small"], ["prune", "--dry-run"], ["score", "--out", "s.safetensors"]):
        code, out, _ = run(verb[0], *given, *verb[1:])
        assert code == 0
        assert "longer than" in out, verb


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_resumes(run, dense, text, sig, tmp_path_factory):
    """Stop the process once its plan is on disk: no checkpoint may be there, and --resume finishes without scoring."""
    arguments = ["prune", str(dense), "--data", text, "--out", "small", "--quiet", *SAMPLES]
    errors = tmp_path_factory.mktemp("errors") / "stderr"
    process = context().Process(target=stalled, args=(arguments, Path.cwd(), errors))
    process.start()
    deadline = time.monotonic() + 60
    while not Path("small.partial/plan.json").exists():
        assert process.is_alive(), errors.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, sig)
    process.join(30)
    assert process.exitcode not in (0, None)
    said = errors.read_text()
    assert ("go on with --resume" in said) == (sig != signal.SIGKILL)
    assert "Traceback" not in said
    assert not Path("small").exists()
    assert sorted(p.name for p in Path.cwd().iterdir()) == ["small.partial"]
    code, out, _ = run(*[a for a in arguments if a != "--quiet"], "--resume", "--json")
    assert code == 0
    assert "score" not in [s["name"] for s in json.loads(out)["stages"]]
    assert Path("small/config.json").exists()


def test_resume_refuses_results_of_other_settings(run, dense, text):
    from pyprune.core.partial import Partial
    from pyprune.core.scores import Scores

    settings = {"model": "another", "data": "x", "recipe": "x", "seed": 0}
    Partial("small", settings, resume=False).save_scores(Scores({"layers.0.heads": torch.ones(2)}))
    refuse(run, "prune", dense, "--data", text, "--out", "small", "--resume", *SAMPLES, says="another")


def test_models_that_do_not_agree_are_a_failure(run, dense, text, monkeypatch):
    from pyprune.report import prune
    from pyprune.verification import Check

    monkeypatch.setattr(prune, "verify_model", lambda *_: [Check("masked = sliced", 1.0, 0.0)])
    code, out, _ = run("prune", dense, "--data", text, "--out", "small", *SAMPLES)
    assert code == 1
    assert "DIFFERENT" in out
    code, out, err = run("prune", dense, "--data", text, "--out", "small", "--overwrite", "--quiet", *SAMPLES)
    assert (code, out) == (1, "")
    assert "pyprune: masked = sliced" in err
