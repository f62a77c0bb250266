"""`pyprune retrain`: a pruned checkpoint and its dense model in, a checkpoint that loads out."""

import json
from pathlib import Path

import pytest
import torch
from refusals import refuse

from pyprune.recovery import retraining, training
from pyprune.testing.checkpoints import tiny_checkpoint

FIXED = ["--share", "1", "--layers", "1", "--batch-size", "4", "--samples", "16"]


@pytest.fixture
def pruned(run, tmp_path):
    """The name of a pruned checkpoint beside `dense` and `passages.txt`."""
    tiny_checkpoint(tmp_path / "dense", "bert", "AutoModelForMaskedLM")
    code, _, err = run(
        "prune", "dense", "--data", "passages.txt", "--out", "small", "--flops", "0.6", "--samples", "8", "--quiet"
    )
    assert code == 0, err
    return "small"


def test_it_writes_a_checkpoint_that_loads(run, pruned):
    data = ("--data", "passages.txt")
    code, out, err = run("retrain", pruned, "dense", "--out", "better", *data, *FIXED, "--json")
    assert code == 0, err
    report = json.loads(out)
    assert (report["steps"], report["share"], report["layers"]) == (4, 1.0, 1)
    assert not Path("better.partial").exists()
    assert run("verify", "better")[0] == 0
    assert {"pyprune_plan.json", "tokenizer.json", "README.md"} <= {path.name for path in Path("better").iterdir()}
    code, out, _ = run("retrain", pruned, "dense", "--out", "whole", *data, "--method", "full", "--samples", "16")
    assert code == 0
    assert "full: 1 steps on 100% of the samples" in out


def test_an_interrupted_run_resumes(run, pruned, monkeypatch):
    see, seen = training._Guard.see, []

    def counted(self, *args):
        seen.append(args)
        if len(seen) == 6:
            raise KeyboardInterrupt
        see(self, *args)

    monkeypatch.setattr(training._Guard, "see", counted)
    arguments = ("retrain", pruned, "dense", "--out", "better", "--data", "passages.txt", *FIXED, "--epochs", "3")
    assert run(*arguments)[0] == 130
    assert not Path("better").exists()
    assert Path("better.partial").is_dir()
    code, _, err = run(*arguments, "--resume", "--quiet")
    assert code == 0, err
    assert len(seen) < 6 + 12
    assert not Path("better.partial").exists()


def test_a_run_that_diverges_writes_its_last_good_state(run, pruned, monkeypatch):
    answer_loss, calls = retraining.answer_loss, []

    def poisoned(*args):
        calls.append(1)
        return answer_loss(*args) * (torch.nan if len(calls) == 3 else 1)

    monkeypatch.setattr(retraining, "answer_loss", poisoned)
    where = ("--out", "better", "--data", "passages.txt", "--targets", "hard")
    code, _, err = run("retrain", pruned, "dense", *where, *FIXED)
    assert code == 1
    assert "the loss of step 3 is nan; the state of step 1 was kept" in err
    assert run("verify", "better")[0] == 0


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (("--method", "magic"), "choose one of rest, full, lora"),
        (("--layers", "99"), "layers=99: the model has"),
        (("--data", "missing.txt"), "missing.txt"),
        (("--epochs", "0"), "epochs=0.0 must be positive"),
    ],
)
def test_bad_input(run, pruned, changed, says):
    refuse(run, "retrain", pruned, "dense", "--out", "better", "--data", "passages.txt", *FIXED, *changed, says=says)


def test_models_that_are_not_there(run, pruned):
    refuse(run, "retrain", "nothing", "dense", "--out", "better", *FIXED, says="nothing")
    Path("full").mkdir()
    Path("full/thesis.txt").write_text("years of work")
    refuse(run, "retrain", pruned, "dense", "--out", "full", *FIXED, says="not empty")
