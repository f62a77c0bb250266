"""docs/models.md lists what there is; `make models-table` writes it."""

from pathlib import Path

import pytest

from pyprune.models.registry import FAMILIES
from pyprune.testing.support import COLUMNS, Case, cases, rows, table

PAGE = Path(__file__).parents[1] / "docs/models.md"


@pytest.fixture(scope="module")
def every_case():
    return cases()


def test_the_page_lists_every_model_type_and_axis(every_case):
    text = PAGE.read_text(encoding="utf-8")
    assert rows(text) == {case.row for case in every_case}, "run make models-table"
    assert f"| model type | axis | {' | '.join(COLUMNS)} |" in text, "run make models-table"
    assert {model_type for model_type, _ in rows(text)} >= set(FAMILIES)


def test_verdicts_name_the_options_that_fail_and_the_reasons():
    gpt2, cross = Case("gpt2", "heads"), Case("gpt2-cross", "heads")
    exact = {Case("bert", "heads"): "", gpt2: "", cross: ""}
    uniform = {Case("bert", "heads"): "no key", gpt2: "", cross: "no key"}
    text = table({"exact": exact, "uniform": uniform, "ONNX": {**exact, cross: "too new"}})
    assert text.splitlines()[2:] == [
        "| `bert` | heads | yes | –[^1] | yes |",
        "| `gpt2` | heads | yes | not gpt2-cross[^1] | not gpt2-cross[^2] |",
        *("", "[^1]: no key", "[^2]: too new"),
    ]


def test_axes_that_are_refused_are_listed(every_case):
    assert every_case[Case("gpt2", "hidden")] == every_case[Case("bert", "layers")] == ""
    assert "it has routed experts" in every_case[Case("mixtral", "hidden")]
    assert Case("swin", "layers") not in every_case
    assert "| `mixtral` | hidden | –" in PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ("exact", {Case("bert", "heads"): "", Case("bert", "hidden"): ""}),
        ("reload", {Case("bert", "heads"): "", Case("bert", "hidden"): ""}),
        ("uniform", {Case("bert", "heads"): "cannot say", Case("bert", "neurons"): "", Case("bert", "layers"): ""}),
        ("ONNX", {Case("clip-vision", "hidden"): "", Case("vilt", "neurons"): "Could not guard on data-dependent"}),
        ("torch.export", {Case("resnet", "hidden"): "", Case("vilt", "neurons"): "Could not guard on data-dependent"}),
    ],
)
def test_a_column_tries_what_it_says(column, expected, tmp_path):
    found = list(COLUMNS[column](list(expected), tmp_path))
    for reason, part in zip(found, expected.values(), strict=True):
        assert reason == "" if part == "" else part in reason


def test_columns_notice_what_is_wrong(tmp_path, monkeypatch):
    """A model cut along other units than were masked."""
    own, wrong = Case.pruned, Case("bert", "neurons")
    monkeypatch.setattr(Case, "pruned", lambda case, uniform=False: own(case, not uniform))
    assert list(COLUMNS["exact"]([wrong], tmp_path)) == ["the sliced model gives other outputs"]
