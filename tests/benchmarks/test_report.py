"""`docs/results.md` and its plots follow from the CSV rows alone."""

import pytest

from benchmarks import report
from benchmarks.rows import mean_std, parse_case, read_rows

HEAD = "date,commit,device,torch,triton,python,benchmark,case,provider,metric,value"
PLACE = "2026-01-02,abc1234,Some CPU,2.13.0,3.9.0,3.11.2"
CASE = "data=d1 model=m1"
LINES = [
    f"{PLACE},debian_sections,{CASE},dense,test_accuracy,0.8",
    *(
        f"{PLACE},debian_sections,{CASE} flops=0.{flops} cotangent={cotangent} seed={seed},{method},test_accuracy,{v}"
        for flops, cotangent, seed, method, v in [
            (7, "none", 0, "random", 0.5),
            (5, "none", 0, "random", 0.25),
            (7, "labels", 0, "fisher", 0.70),
            (7, "labels", 1, "fisher", 0.72),
            (5, "labels", 0, "fisher", 0.60),
            (5, "labels", 1, "fisher", 0.60),
            (5, "sampled", 0, "fisher + refit", 0.79),
        ]
    ),
    f"{PLACE},score_cost,32x128 fp32,pyprune,median_s,1.5",
    f"{PLACE},score_cost,32x128 fp32,published,median_s,3.25",
]


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "some-cpu.csv").write_text("\n".join([HEAD, *LINES]) + "\n")
    return folder


def test_accuracy_table_holds_means_and_deviations(results, tmp_path):
    report.write(results, tmp_path / "docs")
    page = (tmp_path / "docs" / "results.md").read_text()
    assert "**Some CPU**, torch 2.13.0, Triton 3.9.0, Python 3.11.2; 2026-01-02, commit `abc1234`" in page
    assert "Dense model: 80.00." in page
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("|")]
    assert cells[:5] == [
        ["method", "labels used", "70% FLOPs", "50% FLOPs", "seeds"],
        ["---"] * 5,
        ["random", "not used", "50.00", "25.00", "1"],
        ["fisher", "labels", "71.00 ± 1.41", "60.00 ± 0.00", "2"],
        ["fisher + refit", "none (sampled labels)", "", "79.00", "1"],
    ]
    assert cells[5:] == [["case", "pyprune", "published"], ["---"] * 3, ["32x128 fp32", "1.5", "3.25"]]


def test_report_is_reproducible_and_keeps_notes(results, tmp_path):
    docs = tmp_path / "docs"
    report.write(results, docs)
    first = {path.name: path.read_bytes() for path in docs.rglob("*.*")}
    assert sum(name.endswith(".png") for name in first) == 1

    page = docs / "results.md"
    edited = page.read_text().replace(report.BEGIN, "A note.\n" + report.BEGIN).replace("80.00", "99.99")
    page.write_text(edited + "Another.\n")
    report.write(results, docs)
    again = {path.name: path.read_bytes() for path in docs.rglob("*.*")}
    text = again["results.md"].decode()
    assert text.endswith("Another.\n")
    assert text.replace("A note.\n", "").removesuffix("Another.\n").encode() == first["results.md"]
    assert {**again, "results.md": b""} == {**first, "results.md": b""}


def test_other_values_give_another_page_and_plot(results, tmp_path):
    report.write(results, tmp_path / "one")
    table = results / "some-cpu.csv"
    table.write_text(table.read_text().replace(",0.25", ",0.35"))
    report.write(results, tmp_path / "two")
    for name in ("results.md", "plots/*.png"):
        one, two = (next((tmp_path / docs).glob(name)).read_bytes() for docs in ("one", "two"))
        assert one != two


def test_no_rows_and_broken_markers_are_errors(results, tmp_path):
    with pytest.raises(ValueError, match="no CSV files"):
        report.write(tmp_path / "none", tmp_path / "docs")
    with pytest.raises(ValueError, match="is missing"):
        report.replace_measured_part(report.BEGIN, "text")


def test_rows_are_read_with_their_case(results):
    rows = read_rows(results)
    assert len(rows) == len(LINES)
    assert rows[-1].case == {"": "32x128 fp32"}
    assert parse_case("a b=c=d e") == {"": "a e", "b": "c=d"}


def test_mean_std():
    assert mean_std([1.0]) == "1.00"
    assert mean_std([1.0, 2.0, 3.0]) == "2.00 ± 1.00"
