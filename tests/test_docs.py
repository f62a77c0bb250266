"""What the pages say is there: links, paths, flags, and code that runs."""

import ast
import functools
import re
import shlex
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# Written by `make results`; a checkout without measurements has none.
GENERATED = {ROOT / "docs/results.md"}
TOP = ("pyprune/", "tests/", "benchmarks/", "docs/", "csrc/", "triton_kernels/", ".ci/")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(text: str, language: str) -> list[str]:
    return [code for found, code in FENCE.findall(text) if found == language]


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """The fragments that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pages
def test_links_resolve(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, fragment = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists() or found in GENERATED, target
        assert not fragment or fragment in anchors(found), target


@pages
def test_named_paths_exist(page):
    for name in re.findall(r"`([^`\s]+)`", prose(page)):
        if name.startswith(TOP) and not re.search(r"[<>*(]", name):
            assert (ROOT / name).exists() or ROOT / name in GENERATED, name


@pages
def test_python_blocks_compile(page):
    for code in blocks(page.read_text(encoding="utf-8"), "python"):
        try:
            ast.parse(code)
        except SyntaxError:
            ast.parse(f"{{{code}}}")  # an entry of a dict that the page describes


@functools.cache
def verbs():
    import typer

    from pyprune.cli.app import app

    return typer.main.get_command(app).commands


def commands() -> list[list[str]]:
    lines = [line for code in blocks(README, "sh") for line in code.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("pyprune ")]


@pytest.mark.parametrize("arguments", commands(), ids=" ".join)
def test_commands_parse(arguments):
    verb, *rest = arguments
    verbs()[verb].make_context(verb, rest)


def test_flags_exist():
    known = {option for verb in verbs().values() for parameter in verb.params for option in parameter.opts}
    scripts = [source.read_text() for source in (ROOT / "benchmarks").rglob("*.py")]
    known |= {flag for script in scripts for flag in re.findall(r'add_argument\(\s*"(--[a-z][\w-]*)"', script)}
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    named = {flag for page in pages for flag in re.findall(r"`(?:pyprune [^`]*)?(--[a-z][\w-]*)", prose(page))}
    assert named - {"--no-build-isolation"} <= known  # one of pip's


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for page in PAGES:
        assert set(re.findall(r"(?:`|^)make ([a-z-]+)", page.read_text(encoding="utf-8"), re.MULTILINE)) <= targets


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder with a tiny model, in place of MiniLM, and its text, in place of Python's."""
    import pyprune.calibration
    from pyprune.testing.checkpoints import passages, tiny_checkpoint

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pyprune.calibration, "python_reference", passages)
    return tiny_checkpoint(tmp_path / "dense")


def run(code: str, dense: Path) -> dict:
    namespace = {}
    exec(code.replace("sentence-transformers/all-MiniLM-L6-v2", str(dense)), namespace)
    return namespace


def test_quick_start_runs(folder):
    (code,) = blocks(README, "python")
    assert len(code.splitlines()) <= 20
    names = run(code, folder)
    inputs = {"input_ids": torch.arange(4, 12)[None]}
    with torch.no_grad():
        dense, pruned, small = (names[k](**inputs)[0] for k in ("dense", "pruned", "small"))
        reloaded = names["AutoModel"].from_pretrained("minilm-40")(**inputs)[0]
    assert torch.equal(small, names["result"].pruned(**inputs)[0].detach())
    assert torch.equal(reloaded, pruned)
    assert not torch.allclose(dense, pruned)
    plan, anatomy = names["plan"], names["result"].anatomy
    assert plan.cost(anatomy, "flops") <= 0.4 * anatomy.flops(plan.length)
    assert {outcome.fitted for outcome in names["outcomes"]} == {True}


def test_concepts_run(folder, capsys):
    for code in blocks((ROOT / "docs/concepts.md").read_text(encoding="utf-8"), "python"):
        run(code, folder)
    assert "layers.0.heads 4" in capsys.readouterr().out
