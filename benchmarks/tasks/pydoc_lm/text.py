"""The documents: help topics and the docstrings of the standard library, each in the split that its name gives it."""

from __future__ import annotations

import ast
import sysconfig
import zlib
from collections.abc import Iterator
from pathlib import Path

# Tests have few docstrings, and third parties' packages are not the same everywhere.
_LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "lib2to3", "pydoc_data", "__pycache__", "ensurepip"}


def documents(library: Path | None = None) -> list[tuple[str, str]]:
    """`(name, text)` in the order of names: the topics of `help()`, and a document for each module with docstrings.

    They are those of the Python that runs this: other versions have others.
    """
    from pydoc_data.topics import topics

    library = library or Path(sysconfig.get_path("stdlib"))
    found = [(f"topic {name}", topics[name].strip()) for name in sorted(topics)]
    for path in sorted(library.rglob("*.py")):
        name = path.relative_to(library)
        if not _LEFT_OUT & set(name.parts):
            text = "\n\n".join(docstrings(path.read_text(encoding="utf-8", errors="replace")))
            if text:
                found.append((f"module {name.as_posix()}", text))
    return found


def docstrings(source: str) -> Iterator[str]:
    """Docstrings of a module, its classes and functions, behind a line with the name; none if it does not parse."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text:
                yield f"{node.name}:\n{text}" if hasattr(node, "name") else text


def split_of(name: str) -> str:
    """90 / 5 / 5 by a hash: a document is whole in one split."""
    return {18: "dev", 19: "test"}.get(zlib.crc32(name.encode()) % 20, "train")
