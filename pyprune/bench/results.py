"""Rows of `benchmarks/results/<device>.csv`: measured values, each with the device, versions and commit that gave
it.
"""

import csv
import platform
import re
import subprocess
from collections.abc import Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from pyprune.core.errors import InputError

COLUMNS = ("date", "commit", "device", "torch", "triton", "python", "benchmark", "case", "provider", "metric", "value")
# A row is replaced by a newer one that agrees in everything else.
_CHANGING = ("date", "commit", "value")
FOLDER = Path("benchmarks/results")


def device_name(device: str | torch.device | None = None) -> str:
    """`nvidia-h100-80gb-hbm3` for a GPU, for a CPU its model and the threads that torch uses.

    device: None is the first GPU if there is one, else the CPU.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if torch.device(device).type == "cuda":
        return _slug(torch.cuda.get_device_name(device))
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.exists() else []
    name = re.sub(r"\((R|TM)\)|\b(CPU|Processor)\b|@.*", " ", names[0] if names else platform.processor())
    return f"{_slug(name or platform.machine())}-{torch.get_num_threads()}-threads"


def table_path(where: Path, device: str | torch.device | None = None) -> Path:
    """`where` itself if it is called `*.csv`, else `<device>.csv` in that folder."""
    return where if where.suffix == ".csv" else where / f"{device_name(device)}.csv"


def commit_name(sources: Sequence[str]) -> str:
    """The short hash of HEAD, with a `+` if tracked files below `sources` differ from it; `unknown` outside git."""
    try:
        head = _git("rev-parse", "--short", "HEAD")
        return head + ("+" if _git("status", "--porcelain", "--untracked-files=no", "--", *sources) else "")
    except (FileNotFoundError, subprocess.CalledProcessError):
        return "unknown"


class Results:
    """Collects the rows of one benchmark and merges them into its device's file.

    benchmark: the name in the `benchmark` column
    sources: folders whose uncommitted changes mark the commit with a `+`
    path: the CSV file; by default `benchmarks/results/<device>.csv` below the current directory
    device: what was measured, see `device_name`

    Raises: InputError from `write` if the default folder's parent is not there (run from the repository's root).
    """

    def __init__(
        self,
        benchmark: str,
        sources: Sequence[str] = ("csrc", "triton_kernels", "pyprune"),
        path: Path | None = None,
        device: str | torch.device | None = None,
    ):
        self.device = device_name(device)
        self.path = path or FOLDER / f"{self.device}.csv"
        self.rows: list[dict[str, str]] = []
        self._common = {
            "date": date.today().isoformat(),
            "commit": commit_name(sources),
            "device": self.device,
            "torch": torch.__version__,
            "triton": _version("triton"),
            "python": platform.python_version(),
            "benchmark": benchmark,
        }

    def add(self, case: str, provider: str, metric: str, value: float) -> None:
        self.rows.append(
            {**self._common, "case": case, "provider": provider, "metric": metric, "value": f"{value:.6g}"}
        )

    def write(self) -> None:
        """Merge the rows into the file: rows of the same key are replaced where they stand, new ones go to the end."""
        if self.path.parent == FOLDER and not FOLDER.parent.is_dir():
            raise InputError(f"results go to {FOLDER}: run this from the repository's root")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        merged = {_key(row): row for row in read(self.path)}
        merged.update({_key(row): row for row in self.rows})
        partial = self.path.with_suffix(".partial")
        with partial.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(merged.values())
        partial.replace(self.path)


def read(path: Path) -> list[dict[str, str]]:
    """The rows of one file, none if it is not there; InputError for a file of other columns."""
    if not path.exists():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            rows, columns = list(reader), tuple(reader.fieldnames or ())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: no table of results ({error})") from None
    if columns and columns != COLUMNS:
        raise InputError(f"{path}: no table of results: its columns are {', '.join(columns)[:80]}")
    return rows


def _key(row: dict[str, str]) -> tuple[str, ...]:
    return tuple(row[column] for column in COLUMNS if column not in _CHANGING)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()
