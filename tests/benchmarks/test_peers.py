"""torch-pruning as a recipe of the runner: budgets, counts, what its criteria read, and failures as rows."""

import copy
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DeiTConfig,
    DeiTForImageClassification,
    LlamaConfig,
    LlamaForCausalLM,
)

import pyprune
from benchmarks import report
from benchmarks.tasks import peers, results, run
from benchmarks.tasks.peers import PeerFailure, TorchPruning
from benchmarks.tasks.task import DataError, Dense, Task

try:
    version("torch-pruning")
except PackageNotFoundError:
    pytest.skip("torch-pruning is not installed", allow_module_level=True)

LAYERS = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}


class Tiny(Task):
    """Noise, and labels to go with it; the figure is the share of parameters that are not zero."""

    name = "tiny"
    length = None

    def __init__(self, model, name, shape):
        generator = torch.Generator().manual_seed(0)
        numbers = torch.rand(24, *shape, generator=generator)
        self.inputs = (60 * numbers).long() if name == "input_ids" else numbers
        self.model, self.name_of_input = model.eval(), name

    def dense(self, seed=0, cache=None):
        return Dense(copy.deepcopy(self.model), {"key": "tiny", "test": 0.5})

    def evaluate(self, model, split="test"):
        with torch.no_grad():
            assert model(**self.example(3)).logits.isfinite().all()
        return 0.25

    def rows(self, labels):
        rows = [{self.name_of_input: row} for row in self.inputs]
        if labels and not self.model.can_generate():
            return [{**row, "label": i % 2} for i, row in enumerate(rows)]
        return rows

    def example(self, batch):
        return {self.name_of_input: self.inputs[:batch]}


def bert():
    config = BertConfig(vocab_size=64, max_position_embeddings=32, **LAYERS)
    return Tiny(BertForSequenceClassification(config), "input_ids", (8,))


def deit():
    config = DeiTConfig(image_size=12, patch_size=4, num_channels=1, num_labels=3, **LAYERS)
    return Tiny(DeiTForImageClassification(config), "pixel_values", (1, 12, 12))


def llama(groups=4):
    config = LlamaConfig(vocab_size=64, num_key_value_heads=groups, tie_word_embeddings=True, **LAYERS)
    return Tiny(LlamaForCausalLM(config), "input_ids", (8,))


def made(task, resource="flops", budget=0.5, labels=False, **settings):
    recipe = TorchPruning(**settings)
    return recipe.prune(task, task.dense().model, task.calibration(16, 0, labels), resource, budget, 0)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def in_layers(model):
    """Weights of the linear layers inside of the layers: counted without an anatomy."""
    named = ((name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear))
    return sum(m.weight.numel() for name, m in named if ".layer." in name or ".layers." in name)


@pytest.mark.parametrize("task", [bert, deit, llama], ids=lambda task: task.__name__)
@pytest.mark.parametrize("resource", ["flops", "params"])
def test_the_model_is_just_within_the_budget(task, resource):
    task = task()
    found = made(task, resource)
    assert 0.45 < found.achieved <= 0.5
    share = in_layers(found.model) / in_layers(task.model)
    assert share == pytest.approx(found.achieved, abs=0.03 if resource == "flops" else 1e-9)
    assert task.evaluate(found.model) == 0.25
    assert in_layers(task.model) == in_layers(task.dense().model)  # the dense one stays
    assert [stage.name for stage in found.stages.log] == ["score", "prune"]


def test_heads_go_whole_and_widths_stay():
    found = made(bert(), budget=0.5).model
    for layer in found.bert.encoder.layer:
        own = layer.attention.self
        widths = {m.out_features for m in (own.query, own.key, own.value)}
        assert (
            widths == {8 * own.num_attention_heads} == {own.all_head_size} == {layer.attention.output.dense.in_features}
        )
        assert layer.attention.output.dense.out_features == layer.output.dense.out_features == 32
    assert found.classifier.in_features == 32
    heads = [layer.attention.self.num_attention_heads for layer in found.bert.encoder.layer]
    assert sum(heads) < 8


def test_magnitude_takes_the_small_neurons():
    task = bert()
    for layer in task.model.bert.encoder.layer:
        layer.intermediate.dense.weight.data[::2] *= 1e-3
        layer.output.dense.weight.data[:, ::2] *= 1e-3
    found = made(task, budget=0.75)
    for dense, layer in zip(task.model.bert.encoder.layer, found.model.bert.encoder.layer, strict=True):
        rows = {tuple(row) for row in layer.intermediate.dense.weight.tolist()}
        large = {tuple(row) for row in dense.intermediate.dense.weight[1::2].tolist()}
        assert len(rows) < 64
        assert large <= rows or rows <= large


@pytest.mark.parametrize("importance", ["taylor", "hessian", "hessian_mean"])
@pytest.mark.parametrize("task", [deit, llama], ids=lambda task: task.__name__)
def test_gradients_are_of_labels_or_answers(task, importance):
    task = task()
    grads = {}
    for cotangent in ("answers", "labels"):
        recipe = TorchPruning(importance=importance, cotangent=cotangent)
        samples = pyprune.prune(
            task.model, {"flops": 1.0}, task.calibration(16, 0, True), recipe=pyprune.Kwon(tuning="none"), dry_run=True
        ).calibration
        model, scorer = recipe._scored(task.model, samples)
        weight = model.get_parameter(next(n for n, p in model.named_parameters() if "mlp" in n and p.dim() == 2))
        grads[cotangent] = scorer._accu_grad[weight] if "hessian" in importance else weight.grad
        if cotangent == "labels":
            losses = []
            for s, row in enumerate(samples.inputs):
                logits = task.model(**{name: value[None] for name, value in row.items()}).logits[0]
                if samples.labels is None:
                    losses.append(nn.functional.cross_entropy(logits[:-1], row["input_ids"][1:]))
                else:
                    losses.append(nn.functional.cross_entropy(logits, samples.labels[s]))
            name = next(n for n, p in model.named_parameters() if p is weight)
            own = [torch.autograd.grad(one, task.model.get_parameter(name), retain_graph=True)[0] for one in losses]
            expected = {
                "taylor": torch.stack(own).mean(0),
                "hessian": own[-1].square(),  # as released: nothing but the last sample
                "hessian_mean": torch.stack(own).square().mean(0),
            }
            torch.testing.assert_close(grads[cotangent], expected[importance], rtol=1e-3, atol=1e-8)
    assert not torch.allclose(grads["answers"], grads["labels"])
    assert made(task, budget=0.9, labels=True, importance=importance, cotangent="labels").achieved <= 0.9


def test_shared_key_value_heads_are_a_row_with_the_reason(tmp_path):
    task = llama(groups=2)
    (row,) = run.measure(task, task.dense(), TorchPruning(limit=1.0), "flops", 0.5, samples=8, repeats=1)
    assert row.failure == "at ratio 0.0625: TimeoutError: not done after 1 s"
    assert (row.achieved, row.pruned, row.params, row.pruned_ms) == (None,) * 4
    assert (row.dense, row.metric) == (0.5, "accuracy")
    task = bert()
    (good,) = run.measure(task, task.dense(), TorchPruning(), "flops", 0.5, samples=8, repeats=1)
    assert (good.failure, good.pruned) == ("", 0.25)
    good = replace(good, seed=1)
    for one in (row, good):
        results.append(one, tmp_path / "tasks.csv")
    assert results.read(tmp_path / "tasks.csv")[0] == row
    report.write(tmp_path, tmp_path / "docs")
    page = (tmp_path / "docs" / "results.md").read_text()
    assert "| 1 of 2 failed: at ratio 0.0625: TimeoutError: not done after 1 s |" in page
    assert "| 25.00 |" in page


def test_a_table_of_failures_alone_has_no_plot(tmp_path):
    task = bert()
    (row,) = run.measure(task, task.dense(), TorchPruning(), "params", 0.001, samples=8, repeats=1)
    assert row.failure.startswith("no ratio leaves 0.1% or less: the least is ")
    results.append(row, tmp_path / "tasks.csv")
    report.write(tmp_path, tmp_path / "docs")
    page = (tmp_path / "docs" / "results.md").read_text()
    assert "| torch-pruning | none | 0% params |  |  |  |  |  |  |  | 1 of 1 failed: no ratio leaves" in page
    assert "plots/" not in page


def test_a_model_that_does_not_run_and_parts_of_units_are_failures(monkeypatch):
    task = bert()
    monkeypatch.setattr(peers, "_follow", lambda anatomy, dense, model: setattr(model, "forward", nn.Module().forward))
    with pytest.raises(PeerFailure, match=r"the pruned model does not run: .* \(\w+\.py:\d+\)$"):
        made(task)
    monkeypatch.undo()

    roles = peers._roles

    def no_heads(anatomy, model):
        return {}, roles(anatomy, model)[1]

    monkeypatch.setattr(peers, "_roles", no_heads)  # so it cuts channels one by one
    with pytest.raises(PeerFailure, match="differ in what they lost, or lost a part of it"):
        made(task)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("--set importance=none", "importance='none': choose one of magnitude, taylor"),
        ("--set cotangent=sampled", "cotangent='sampled': choose one of answers, labels"),
        ("--set global_pruning=maybe", "global_pruning='maybe': choose one of True, False"),
        ("--set limit=0", "limit=0 must be a number of seconds above 0"),
        ("--set draws=1", "recipe 'torch-pruning': "),
        ("--recover", "--recover: retrains what pyprune pruned, not the models of torch-pruning"),
    ],
)
def test_bad_input_is_one_line(words, reason, monkeypatch, capsys):
    monkeypatch.setattr(run, "find", lambda name: pytest.fail("the task was built"))
    assert run.main(["--task", "digits", "--recipe", "torch-pruning", *words.split()]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert reason in line


def test_a_missing_package_is_named(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(peers, "version", missing)
    with pytest.raises(DataError, match=f"pip install --no-deps torch-pruning=={peers.VERSION}"):
        TorchPruning()


def test_setup_installs_the_version_that_is_named():
    assert f"torch-pruning=={peers.VERSION}" in (Path(__file__).parents[2] / "Makefile").read_text()


def test_the_command_adds_a_row_of_failure(monkeypatch, tmp_path, capsys):
    task = llama(groups=2)
    monkeypatch.setattr(run, "find", lambda name: task)
    command = "--task digits --recipe torch-pruning --set limit=0.5 --samples 8 --threads 1"
    assert run.main([*command.split(), "--results", str(tmp_path / "t.csv")]) == 0
    assert "torch-pruning limit=0.5: failed: at ratio" in capsys.readouterr().out
    (row,) = results.read(tmp_path / "t.csv")
    assert "TimeoutError" in row.failure
