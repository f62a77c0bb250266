"""The layout that the design promises, read from the sources: who imports whom, and what nobody does."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]

# Imports go strictly down. `pyprune` alone is the public interface, `pyprune/__init__.py`.
FLOORS = {
    "triton_kernels": 0,
    "core": 1,
    "ops": 2,
    "capture": 3,
    **dict.fromkeys(("importance", "search", "slicing", "recovery", "layers", "data"), 4),
    **dict.fromkeys(("models", "recipes"), 5),
    **dict.fromkeys(("api", "calibration", "formats", "retraining", "scoring", "verification", ""), 6),
    **dict.fromkeys(("bench", "report"), 7),
    "cli": 8,
}
# On one floor: the public functions write what `verification` replays, files are checked by its measure before they
# appear, and reports print what `bench` measures.
BESIDE = {
    ("api", "calibration"),
    ("api", "scoring"),
    ("api", "verification"),
    ("api", "formats"),
    ("formats", "verification"),
    ("report", "bench"),
    ("retraining", "api"),
    ("retraining", "calibration"),
}
BESIDE |= {("", "api"), ("", "verification")}
# The command line speaks through floors 6 and 7. What goes past them today; the list may only become shorter.
PAST_THE_PUBLIC_FUNCTIONS = {
    ("cli.info", "ops"),
    ("cli.info", "models"),
    ("cli.plan", "core.scores"),
    ("cli.plan", "models"),
    ("cli.verify", "models"),
}
# Tasks are users: what they need of the inside today; the list may only become shorter.
PAST_THE_PUBLIC_INTERFACE = {("finetune", "pyprune.models.loading"), ("peers", "pyprune.capture.outputs")}
THIRD_PARTY = {
    "triton_kernels": {"torch", "triton"},
    "core": {"torch", "numpy", "safetensors", "tqdm"},
    "ops": {"torch", "numpy", "triton"},
}
FAMILIES = re.compile(r"bert|llama|mistral|qwen|gpt|opt_|gemma|phi3|mixtral", re.IGNORECASE)
TRAINING = {"Trainer", "TrainerCallback", "TrainingArguments", "PrinterCallback", "logging"}


class Import(NamedTuple):
    target: str
    names: tuple[str, ...]
    inside_function: bool


class Source:
    """One module: its dotted name below `pyprune`, its package there, and its syntax tree."""

    def __init__(self, path, name):
        self.path, self.name, self.package = path, name, name.split(".")[0]
        self.text = path.read_text(encoding="utf-8")
        self.tree = ast.parse(self.text)

    def __repr__(self):
        return self.name or "pyprune"

    def imports(self):
        functions = [n for n in ast.walk(self.tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
        lazy = {id(node) for function in functions for node in ast.walk(function)}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield Import(alias.name, (), id(node) in lazy)
            elif isinstance(node, ast.ImportFrom):
                names = tuple(alias.name for alias in node.names)
                base = f"pyprune.{self.name}".split(".")[: -node.level] if node.level else []
                target = ".".join([*base, *([node.module] if node.module else [])])
                if target == "pyprune":  # a package of it, or a public name
                    for name in names:
                        yield Import(f"pyprune.{name}" if name in FLOORS else "pyprune", (), id(node) in lazy)
                else:
                    yield Import(target, names, id(node) in lazy)

    def inner_imports(self):
        """`(package, dotted name, lazy)` of imports from pyprune itself."""
        for found in self.imports():
            if found.target.split(".")[0] == "pyprune":
                name = found.target.removeprefix("pyprune").lstrip(".")
                package = name.split(".")[0]
                yield (package if package in FLOORS or package == "testing" else ""), name, found.inside_function


def sources():
    found = [(path, path.relative_to(ROOT / "pyprune")) for path in sorted((ROOT / "pyprune").rglob("*.py"))]
    kernels = ROOT / "triton_kernels"
    found += [(path, Path("triton_kernels") / path.relative_to(kernels)) for path in sorted(kernels.rglob("*.py"))]
    return [Source(path, ".".join(p for p in name.with_suffix("").parts if p != "__init__")) for path, name in found]


SOURCES = sources()
EVERY = pytest.mark.parametrize("source", SOURCES, ids=repr)


def test_every_way_to_import_is_seen(tmp_path):
    (tmp_path / "x.py").write_text(
        "import torch, pyprune.api as a\nfrom pyprune import ops, prune\nfrom . import plan\nfrom .plan import Plan\n"
        "from ..models import bert\ndef f():\n    from pyprune.triton_kernels import x\n"
    )
    found = list(Source(tmp_path / "x.py", "core.x").inner_imports())
    assert [name for _, name, _ in found] == [
        *("api", "ops", "", "core", "core.plan", "models", "triton_kernels"),
    ]
    assert [package for package, _, _ in found] == ["api", "ops", "", "core", "core", "models", "triton_kernels"]
    assert [lazy for _, _, lazy in found] == [False] * 6 + [True]


@EVERY
def test_every_module_has_a_floor(source):
    assert source.package in FLOORS or source.package == "testing"


@EVERY
def test_imports_go_strictly_down(source):
    if source.package == "testing":
        return
    for package, name, lazy in source.inner_imports():
        assert package != "testing", f"{source} imports {name}, which is for tests and benchmarks"
        if package == source.package or (source.package, package) in BESIDE:
            continue
        assert FLOORS[package] < FLOORS[source.package], f"{source} imports {name}"
        assert package != "triton_kernels" or (lazy and source.package == "ops"), f"{source} imports {name}"


@pytest.mark.parametrize("source", [s for s in SOURCES if s.package == "cli"], ids=repr)
def test_the_command_line_speaks_through_the_public_functions(source):
    for package, name, _ in source.inner_imports():
        public = FLOORS[package] >= 6 or name == "core.errors"
        known = {(source.name, name), (source.name, package)} & PAST_THE_PUBLIC_FUNCTIONS
        assert public or known, f"{source} imports {name}"


@pytest.mark.parametrize("source", [s for s in SOURCES if s.package in THIRD_PARTY], ids=repr)
def test_low_floors_need_little(source):
    for found in source.imports():
        top = found.target.split(".")[0]
        assert top in sys.stdlib_module_names or top in {"pyprune", *THIRD_PARTY[source.package]}, found.target


@EVERY
def test_modelling_code_is_known_to_models_only(source):
    if source.package in ("models", "testing"):
        return
    for found in source.imports():
        if found.target.split(".")[0] != "transformers":
            continue
        assert found.inside_function, f"{source} imports transformers with itself"
        if found.names:
            assert source.package in ("recovery", "recipes"), f"{source} imports {found.names}"
            assert found.target == "transformers", f"{source} imports {found.target}"
            assert set(found.names) <= TRAINING, f"{source} imports {found.names}"
        else:
            assert found.target == "transformers", f"{source} imports {found.target}"


def words(tree):
    """Every identifier and string of a module that is code, not documentation."""
    docs = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            docs.add(id(node.value))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield node.value
        for field in ("id", "attr", "name", "arg"):
            if isinstance(getattr(node, field, None), str):
                yield getattr(node, field)


@pytest.mark.parametrize("source", [s for s in SOURCES if FLOORS.get(s.package, 9) < 5], ids=repr)
def test_no_family_is_named_below_the_models(source):
    named = [word for word in words(source.tree) if FAMILIES.search(word)]
    assert not named


@EVERY
def test_files_are_short(source):
    assert source.text.count("\n") <= 500


@EVERY
def test_no_exception_is_swallowed(source):
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{source}:{node.lineno} catches everything"
            assert not all(isinstance(n, ast.Pass) for n in node.body), f"{source}:{node.lineno} passes"


def test_nobody_takes_the_kernels_for_a_package_of_that_name():
    paths = [
        p for folder in ("pyprune", "benchmarks", "tests", "triton_kernels") for p in (ROOT / folder).rglob("*.py")
    ]
    for path in paths:
        for found in Source(path, f"outside.{path.stem}").imports():
            assert found.target.split(".")[0] != "triton_kernels", path


def test_tasks_use_the_public_interface_only():
    for path in sorted((ROOT / "benchmarks" / "tasks").rglob("*.py")):
        for found in Source(path, f"outside.{path.stem}").imports():
            if found.target.split(".")[0] == "pyprune" and (path.stem, found.target) not in PAST_THE_PUBLIC_INTERFACE:
                assert found.target in ("pyprune", "pyprune.bench") or found.target.startswith("pyprune.bench."), path


def test_a_test_folder_for_every_package():
    ours = {s.package for s in SOURCES if s.path.parent.parent == ROOT / "pyprune"} - {"testing", "report"}
    assert {p for p in ours if not list((ROOT / "tests" / p).glob("test_*.py"))} == set()


def test_importing_pyprune_is_cheap():
    code = "import json, sys, pyprune; print(json.dumps(sorted(sys.modules)))"
    loaded = set(json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout))
    assert "pyprune" in loaded
    assert not {"torch", "transformers", "numpy", "scipy"} & loaded


def test_every_public_name_is_found():
    import pyprune

    for name in pyprune.__all__:
        assert getattr(pyprune, name) is not None
    assert set(pyprune.__all__) <= set(dir(pyprune))
    with pytest.raises(AttributeError, match="no attribute 'prunes'"):
        pyprune.prunes  # noqa: B018
