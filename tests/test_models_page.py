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


def test_verdicts_name_the_options_that_fail():
    found = [Case("bert", "heads"), Case("gpt2", "heads"), Case("gpt2-cross", "heads")]
    text = table(found, {"exact": [True, True, True], "uniform": [False, True, False]})
    assert text.splitlines()[2:] == ["| `bert` | heads | yes | no |", "| `gpt2` | heads | yes | not gpt2-cross |"]


@pytest.mark.parametrize(
    ("column", "axis", "expected"),
    [("exact", "heads", True), ("reload", "heads", True), ("uniform", "heads", False), ("uniform", "neurons", True)],
)
def test_a_column_tries_what_it_says(column, axis, expected, tmp_path):
    assert list(COLUMNS[column]([Case("bert", axis)], tmp_path)) == [expected]
