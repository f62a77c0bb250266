"""The runner of the tasks: what it refuses, the rows that it writes, and the tables that are made of them."""

import re
from dataclasses import replace

import pytest

import pyprune
from benchmarks import report
from benchmarks.tasks import results, run
from benchmarks.tasks.results import TaskRow
from benchmarks.tasks.task import task_names

ROW = TaskRow(
    date="2026-01-02",
    commit="abc1234",
    device="some-cpu",
    torch="2.13.0",
    transformers="5.23.0",
    python="3.11.2",
    task="digits",
    model="0123",
    dense_seed=0,
    recipe="kwon",
    settings="tuning=none",
    resource="flops",
    budget=0.5,
    samples=512,
    recovery="none",
    seed=0,
    achieved=0.4975,
    metric="accuracy",
    dense=0.95,
    pruned=0.75,
    recovered=None,
    dense_params=2_000_000,
    params=1_000_000,
    dense_flops=1e9,
    flops=4.975e8,
    batch=16,
    dense_ms=10.0,
    pruned_ms=5.0,
    seconds="score=1.5 plan=0.5",
    peak_mib="score=900 plan=800",
)


def test_rows_come_back_and_the_newest_of_equal_runs_stands(tmp_path):
    path = tmp_path / "results" / "tasks.csv"
    assert results.read(path) == []
    other = replace(ROW, seed=1, pruned=0.85, recovered=0.9)
    for row in (replace(ROW, pruned=0.1, date="2026-01-01"), other, ROW):
        results.append(row, path)
    assert results.read(path) == [ROW, other]
    assert len(path.read_text().splitlines()) == 4


def test_a_table_of_other_columns_is_named(tmp_path):
    (tmp_path / "tasks.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"tasks\.csv: no table of tasks: its columns are a, b"):
        results.read(tmp_path / "tasks.csv")


def test_report_has_a_table_for_each_task(tmp_path):
    trained = replace(ROW, recipe="surgeon", settings="", recovered=0.9, seconds=f"{ROW.seconds} recover=7")
    for row in (ROW, replace(ROW, seed=1, pruned=0.85), trained):
        results.append(row, tmp_path / "tasks.csv")
    results.append(replace(ROW, task="pydoc_lm", metric="perplexity", dense=20.0, pruned=30.0), tmp_path / "tasks.csv")
    report.write(tmp_path, tmp_path / "docs")
    page = (tmp_path / "docs" / "results.md").read_text()
    assert "| kwon tuning=none | none | 50% flops | 49.8% | 80.00 ± 7.07 |  | 1.00 | 2.00 | 2 |  | 2 |" in page
    assert "| surgeon | none | 50% flops | 49.8% | 75.00 | 90.00 | 1.00 | 2.00 | 2 | 7 | 1 |" in page
    assert "Dense model `0123`: perplexity 20.00" in page
    assert "| 30.00 |" in page
    plots = sorted((tmp_path / "docs" / "plots").glob("*.png"))
    assert [plot.name for plot in plots if f"(plots/{plot.name})" in page] == [plot.name for plot in plots]
    assert len(plots) == 2


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("--recipe none", "recipe='none': choose one of flap, kprune, kwon, "),
        ("--recipe kwon --set nosuch=1", "recipe 'kwon': .*nosuch"),
        ("--recipe kwon --set draws", "--set draws: expected name=value"),
        ("--recipe kwon --set draws=0", "draws=0 must be at least 1"),
        ("--budget 1.5", r"--budget 1\.5: expected a share"),
        ("--budget latency=0.5", "--budget latency=0.5: expected a share"),
        ("--budget half", "--budget half: expected a share"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_trained(words, reason, monkeypatch, capsys):
    monkeypatch.setattr(run, "find", lambda name: pytest.fail("the task was built"))
    assert run.main(["--task", task_names()[0], *words.split()]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert re.search(reason, line)


def test_missing_data_is_one_line(monkeypatch, capsys):
    def missing(name):
        raise run.DataError("no data here")

    monkeypatch.setattr(run, "find", missing)
    assert run.main(["--task", task_names()[0]]) == 2
    assert capsys.readouterr().err == "error: no data here\n"


def test_settings_are_python_values_where_they_can_be():
    assert run.parsed_settings(["draws=4", "tuning=none", "damping=1e-2"]) == {
        "draws": 4,
        "tuning": "none",
        "damping": 0.01,
    }
    assert run.parsed_budget("0.5") == ("flops", 0.5)
    assert run.parsed_budget("params=0.4") == ("params", 0.4)


def test_every_public_recipe_is_there():
    assert {"kwon", "kprune", "surgeon", "flap"} <= run.recipes().keys()
    assert run.recipe_of("kwon", {"tuning": "none"}) == pyprune.Kwon(tuning="none")
