"""The axis `vocab` on the command line."""

import json

import pytest
from transformers import AutoTokenizer

from pyprune.testing.checkpoints import tiny_checkpoint


@pytest.mark.parametrize(("variant", "head"), [("bert", "AutoModelForMaskedLM"), ("t5", "AutoModelForSeq2SeqLM")])
def test_tokens_that_are_never_needed_go(variant, head, run, tmp_path):
    dense = tiny_checkpoint(tmp_path / "dense", variant, head)
    shared = ["--data", tmp_path / "passages.txt", "--samples", "8", "--axes", "vocab"]
    assert run("prune", dense, "--out", "small", "--params", "98%", "--quiet", *shared)[0] == 0
    report = json.loads((tmp_path / "small/pyprune_report.json").read_text())
    assert all(check["equal"] for check in report["checks"])
    assert any("of the tokens of the held-out data are kept" in notice for notice in report["notices"])
    config = json.loads((tmp_path / "small/config.json").read_text())
    assert config["vocab_size"] == report["kept"]["vocab"] < 99
    assert len(AutoTokenizer.from_pretrained(tmp_path / "small")) <= config["vocab_size"]
    assert run("verify", "small", "--quiet")[0] == 0
    assert run("verify", dense, "--axes", "vocab", "--quiet")[0] == 0
    scores = ["score", dense, "--out", "scores.safetensors", "--quiet", *shared]
    assert run(*scores)[0] == 0
    plan = ["plan", dense, "--scores", "scores.safetensors", "--params", "98%", "--axes", "vocab", "--json"]
    code, out, _ = run(*plan)
    assert code == 0
    assert json.loads(out)["kept"]["vocab"] == config["vocab_size"]


def test_a_budget_below_the_special_tokens_is_one_line(run, tmp_path):
    dense = tiny_checkpoint(tmp_path / "dense")
    code, _, said = run("prune", dense, "--out", "small", "--params", "1%", "--axes", "vocab", "--samples", "4")
    assert code == 2
    assert said.strip().splitlines()[-1].startswith("pyprune: error: budget of 0.01 of the dense params cannot be met")
    assert not (tmp_path / "small").exists()
    assert not (tmp_path / "small.partial").exists()


def test_verify_takes_every_axis(run, tmp_path):
    dense = tiny_checkpoint(tmp_path / "dense", "llama", "AutoModelForCausalLM")
    code, out, _ = run("verify", dense, "--axes", "layers,hidden,vocab", "--json")
    assert code == 0
    assert [check["equal"] for check in json.loads(out)] == [True, True]
    assert run("verify", dense, "--axes", "colour")[0] == 2
