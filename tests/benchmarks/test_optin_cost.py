"""The benchmark of OPTIN's scores runs, and its estimates rank neurons as exact scores do."""

import csv
import sys

from benchmarks.e2e import optin_cost
from pyprune.testing.checkpoints import tiny_checkpoint


def test_rows_and_the_same_ranking(monkeypatch, tmp_path, capsys):
    model = str(tiny_checkpoint(tmp_path / "model"))
    arguments = ["optin_cost", "--model", model, "--tokens", "60", "--probes", "100", "--units", "6", "--band", "0.2"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--results", str(tmp_path / "rows.csv")])
    optin_cost.main()
    rows = {
        (row["provider"], row["metric"]): float(row["value"]) for row in csv.DictReader((tmp_path / "rows.csv").open())
    }
    assert rows["pyprune 100", "spearman to exact"] > 0.8
    assert rows["published", "times as fast"] == 1
    speed = rows["published", "s"] / rows["band 100", "s"]
    assert abs(speed / rows["band 100", "times as fast"] - 1) < 1e-3
    assert "times as fast as published" in capsys.readouterr().out
