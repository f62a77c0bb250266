"""The benchmark of LFPR's scores runs, and compares what is the same."""

import csv
import sys

from benchmarks.e2e import lfpr_cost


def test_rows_and_the_same_ranking(monkeypatch, tmp_path, capsys):
    tiny = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 64}
    monkeypatch.setattr(lfpr_cost, "SHAPE", lfpr_cost.SHAPE | tiny)
    monkeypatch.setattr(lfpr_cost, "STEPS", 4)
    arguments = ["lfpr_cost", "--samples", "8", "--length", "6", "--repeats", "2", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--results", str(tmp_path / "rows.csv")])
    lfpr_cost.main()
    rows = {
        (row["provider"], row["metric"]): float(row["value"]) for row in csv.DictReader((tmp_path / "rows.csv").open())
    }
    assert rows["pyprune", "spearman to released"] > 0.999
    assert abs(rows["released", "ms"] / rows["pyprune", "ms"] / rows["pyprune", "times as fast"] - 1) < 1e-3
    assert "times as fast" in capsys.readouterr().out
