"""Finds and loads the compiled libraries beside the package. Each is optional; why one is missing is part of the
answer.
"""

from functools import cache
from pathlib import Path

import torch

from pyprune.core.errors import BackendError

_PACKAGE = Path(__file__).resolve().parent.parent
_LIBRARIES = {"cpp": "_C.abi3.so", "cuda": "_C_cuda.abi3.so"}


@cache
def missing(backend: str) -> str | None:
    """Load the library of `"cpp"` or `"cuda"` and return None, or return why it cannot serve here.

    A library that is present but does not load is a broken build: its `OSError` is raised, not turned into a reason.
    """
    path = _PACKAGE / _LIBRARIES[backend]
    if not path.exists():
        return f"pyprune/{path.name} is not built (PYPRUNE_BUILD={'cpu' if backend == 'cpp' else 'cuda'} pip install .)"
    if backend == "cuda" and torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    torch.ops.load_library(path)
    return None


def op(backend: str, name: str):
    """The raw op `name` of a library, which is loaded if it was not.

    Raises: BackendError if the library is missing.
    """
    reason = missing(backend)
    if reason is not None:
        raise BackendError(f"{name}: {reason}")
    return getattr(getattr(torch.ops, f"pyprune_{backend}"), name).default
