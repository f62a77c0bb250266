"""The table of a task: every row once, those that are there left alone, an interruption goes on where it was."""

import pytest

from benchmarks.tasks import equal_time, over_tasks, results, run, table
from benchmarks.tasks.digits.task import Digits
from benchmarks.tasks.task import Dense
from pyprune.recovery.retraining import Retraining


class Broken(Exception):
    pass


@pytest.fixture
def task(digits_file, monkeypatch):
    made = Digits(digits_file, hidden_size=32, num_attention_heads=4, num_hidden_layers=2, intermediate_size=64)
    made.dense = lambda seed=0: Dense(made.fresh(0).eval(), {"key": "tiny", "test": 0.5})
    budgets = {0.6: 1, 0.5: 2}
    monkeypatch.setattr(table, "BUDGETS", budgets)
    monkeypatch.setattr(
        table,
        "VARIANTS",
        (
            table.Variant("kwon", {"criterion": "random", "tuning": "none"}, budgets=budgets, samples=4),
            table.Variant("lfpr", budgets=budgets),
            table.Variant("lfpr", {}, {"layers": 1, "share": 1.0}, budgets),
        ),
    )
    return made


def test_rows_once_and_on_from_where_it_stopped(task, tmp_path, monkeypatch):
    path, calls = tmp_path / "tasks.csv", []
    measure = run.measure

    def counted(*args, recoveries, **options):
        calls.append(recoveries)
        if len(calls) == 3:
            raise Broken
        return measure(*args, recoveries=recoveries, **options)

    monkeypatch.setattr(table, "measure", counted)
    sizes = {"samples": 8, "repeats": 1}
    with pytest.raises(Broken):
        table.fill(task, path, "cpu", **sizes)
    assert len(results.read(path)) == 3
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))  # as if it had stopped between two rows
    assert table.fill(task, path, "cpu", **sizes) == 7
    rows = results.read(path)
    assert len(rows) == 9
    assert sorted({(row.budget, row.seed) for row in rows}) == [(0.5, 0), (0.5, 1), (0.6, 0)]
    assert {(row.recipe, row.samples) for row in rows} == {("kwon", 4), ("lfpr", 8)}
    assert table.fill(task, path, "cpu", **sizes) == 0
    # One model for a recipe's rows with and without retraining.
    alone, together = [None], [None, {"layers": 1, "share": 1.0}]
    assert calls == [alone, together, alone, together[1:], alone, together, alone, together]


def test_rows_of_one_pruned_model_agree_and_leave_it_as_it_was(task):
    recover = {"method": "full", "share": 1.0, "learning_rate": 1e-2}
    options = {"samples": 8, "recovery_samples": 16, "repeats": 1, "recoveries": [None, recover, None]}
    before, trained, after = run.measure(task, task.dense(), run.recipe_of("lfpr", {}), "params", 0.5, **options)
    assert before.pruned == trained.pruned == after.pruned
    assert (before.recovered, after.recovered) == (None, None)
    assert trained.recovered is not None
    assert "recover=" in trained.seconds
    assert "recover=" not in after.seconds
    assert before.params == after.params


@pytest.mark.parametrize("variant", table.VARIANTS, ids=lambda v: f"{v.recipe} {v.words} {v.recover}")
def test_every_variant_is_one_that_there_is(variant):
    recipe = run.recipe_of(variant.recipe, dict(variant.settings))
    assert recipe.name == variant.recipe
    if variant.recover is not None:
        Retraining(**variant.recover)


def test_full_retraining_takes_as_long_as_rest(task, tmp_path, monkeypatch, capsys):
    path = tmp_path / "tasks.csv"
    monkeypatch.setattr(equal_time, "SIZES", (0.5,))
    monkeypatch.setattr(equal_time, "REST", {"layers": 1, "share": 1.0})
    monkeypatch.setattr(over_tasks, "find", lambda name: task)
    assert equal_time.main(["--task", "digits", "--samples", "8", "--threads", "1", "--results", str(path)]) == 0
    rest, full = results.read(path)
    assert rest.recovery.startswith("method=rest layers=1")
    assert full.recovery.startswith(f"method=full learning_rate={table.REST['learning_rate']}")
    assert rest.pruned == full.pruned
    assert f"{full.recovered:.4g} in" in capsys.readouterr().out
    assert equal_time.equal_epochs(14.0, 3.0, 5.0) == pytest.approx(1.2)  # 2 s before, 10 s an epoch
    assert equal_time.equal_epochs(1.0, 3.0, 5.0) == 0.1  # too short for what is spent before
