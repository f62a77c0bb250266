"""`pyprune bench`: its table, its files, and its refusals."""

import csv
import json

import pytest
from refusals import refuse

from pyprune.ops import OPS

TINY = ("--tiny", "--repeats", "1", "--device", "cpu")


def test_table_names_the_fastest(run):
    code, out, _ = run("bench", "prod_reduce", *TINY)
    assert code == 0
    assert "prod_reduce 2x64x96 fp32" in out
    assert out.strip().splitlines()[-1].startswith("prod_reduce: fastest ")


def test_files(run, tmp_path):
    code, out, _ = run("bench", *TINY, "--quiet", "--csv", "rows.csv", "--plot", "plots/roof.png")
    assert (code, out) == (0, "")
    with (tmp_path / "rows.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["benchmark"] for row in rows} == set(OPS)
    assert {"ms", "share of ceiling", "ratio to pyprune"} <= {row["metric"] for row in rows}
    assert (tmp_path / "plots/roof.png").read_bytes().startswith(b"\x89PNG")


def test_json(run):
    code, out, _ = run("bench", "prod_reduce", *TINY, "--json", "--providers", "eager, einsum")
    assert code == 0
    (case,) = json.loads(out)["cases"]
    assert set(case["providers"]) == {"pyprune", "eager", "einsum"}
    assert case["fastest"] in case["providers"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("prod_reduced",), "'prod_reduced' is no op; choose from"),
        (("prod_reduce", "--providers", "nobody"), "nobody is called 'nobody'"),
        (("prod_reduce", "--plot", "roof.pdf"), "must end in .png"),
        (("prod_reduce", "--csv", "/dev/null/rows.csv"), "cannot be written"),
        (("prod_reduce", "--device", "abacus"), "device='abacus': choose"),
        (("prod_reduce", "--device", ""), "device='': choose"),
        (("prod_reduce", "--device", "meta"), "device='meta': choose"),
        (("prod_reduce", "--device", "cuda:99"), "CUDA devices"),
    ],
)
def test_refusals(run, arguments, says):
    refuse(run, "bench", *arguments, says=says)


def test_files_that_are_something_else_are_refused_before_anything_is_timed(run, tmp_path):
    (tmp_path / "plain").write_text("hello")
    (tmp_path / "odd.csv").write_text("a,b\n1,2\n")
    (tmp_path / "binary.csv").write_bytes(bytes(range(256)))
    for folder in ("folder.csv", "folder.png"):
        (tmp_path / folder).mkdir()
    refuse(run, "bench", "prod_reduce", *TINY, "--csv", "plain", says="plain is no folder")
    refuse(run, "bench", "prod_reduce", *TINY, "--csv", "odd.csv", says="its columns are a, b")
    refuse(run, "bench", "prod_reduce", *TINY, "--csv", "binary.csv", says="no table of results")
    refuse(run, "bench", "prod_reduce", *TINY, "--csv", "folder.csv", says="is a folder")
    refuse(run, "bench", "prod_reduce", *TINY, "--plot", "folder.png", says="is a folder")
