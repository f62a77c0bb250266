"""The benchmark of real sizes runs, on sizes that are none."""

import csv
import sys

import pytest

from benchmarks.e2e import midsize

TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 99}


@pytest.mark.parametrize("axes", [(), ("vocab",)])
def test_rows_for_both_phases_and_the_memory(axes, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(midsize, "MODELS", {"tiny": ("llama", {**TINY, "num_key_value_heads": 2}, axes)})
    monkeypatch.setattr(midsize, "PROMPT", 6)
    monkeypatch.setattr(midsize, "slicing_share", midsize.own_slicing_share)
    monkeypatch.setattr(sys, "argv", ["midsize", "--models", "tiny", "--device", "cpu", "--repeats", "2"])
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--results", str(tmp_path / "rows.csv")])
    midsize.main()
    rows = list(csv.DictReader((tmp_path / "rows.csv").open()))
    found = {(row["case"], row["provider"], row["metric"]) for row in rows}
    assert ("tiny", "pyprune", "slicing peak / model") in found
    for case in ("tiny prefill 1x6", "tiny decode 1x1"):
        assert {(case, "dense", "ms"), (case, "pruned", "ms"), (case, "pruned", "times as fast")} <= found
    assert "times as fast" in capsys.readouterr().out


@pytest.mark.parametrize("name", midsize.MODELS)
def test_sizes_are_those_of_the_name(name):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    model_type, config, _ = midsize.MODELS[name]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **config))
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    assert {"gpt2": 124, "llama": 1236}[model_type] == round(millions)
