"""Build the task from the package lists of apt: short description -> section, the 20 most frequent sections.

    python -m benchmarks.tasks.debian_sections.data                 # sizes, labels and hash of what this machine has
    python -m benchmarks.tasks.debian_sections.data --slice 2000    # that many raw rows (the tests' file), on stdout

A package's split follows from its name alone, so packages stay in their split when the archive changes. Texts are
deduplicated before the split: no description, whatever its case and punctuation, stands in two splits.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.tasks.task import DataError

SECTIONS = 20
_FIELD = re.compile(r"^(Package|Section|Description)(?:-en)?: (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Record:
    """One package: its name, its section without the archive area (`contrib/net` is `net`), its short description."""

    name: str
    section: str
    text: str


@dataclass(frozen=True)
class Task:
    """`train`, `dev` and `test` are sorted by name; a record's label is its section's position in `labels`."""

    labels: tuple[str, ...]
    train: tuple[Record, ...]
    dev: tuple[Record, ...]
    test: tuple[Record, ...]

    def label(self, record: Record) -> int:
        return self.labels.index(record.section)

    @property
    def sha256(self) -> str:
        """Hash over every row with its split: equal hashes mean equal data."""
        digest = hashlib.sha256()
        for split in ("train", "dev", "test"):
            for r in getattr(self, split):
                digest.update(f"{split}\t{r.name}\t{r.section}\t{r.text}\n".encode())
        return digest.hexdigest()


def parse(dump: str) -> list[Record]:
    """Records of `apt-cache dumpavail`'s output, in its order; packages without section or description are left out."""
    records = []
    for paragraph in dump.split("\n\n"):
        fields = dict(_FIELD.findall(paragraph))
        if len(fields) == 3:
            text = " ".join(fields["Description"].split())
            records.append(Record(fields["Package"], fields["Section"].rpartition("/")[2], text))
    return records


def available() -> list[Record]:
    """Every package that apt knows on this machine; DataError when it knows none."""
    try:
        dump = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, check=True).stdout
    except FileNotFoundError:
        raise DataError("apt-cache is not installed: this task needs Debian, Ubuntu or a --tsv file") from None
    except subprocess.CalledProcessError as error:
        raise DataError(f"apt-cache dumpavail failed: {error.stderr.decode(errors='replace').strip()}") from None
    records = parse(dump.decode("utf-8", errors="replace"))
    # Without package lists apt-cache still answers with the few packages that are installed.
    if len(records) < 10_000:
        raise DataError(f'apt-cache lists {len(records)} packages, too few for this task: run "apt-get update"')
    return records


def read_tsv(path: str | Path) -> list[Record]:
    """Records of a file of `name<TAB>section<TAB>description` lines, as `--slice` prints them."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
        return [Record(*line.split("\t")) for line in lines]
    except (OSError, UnicodeDecodeError, TypeError) as error:
        raise DataError(f"{path}: expected lines of name<TAB>section<TAB>description ({error})") from None


def build(records: Iterable[Record], sections: int = SECTIONS) -> Task:
    """Deduplicate by name and by text, keep the most frequent sections, split by name hash."""
    by_text: dict[str, Record] = {}
    for record in {r.name: r for r in sorted(records, key=lambda r: (r.name, r.section, r.text))}.values():
        key = normalised(record.text)
        if key:
            by_text.setdefault(key, record)
    counts = Counter(r.section for r in by_text.values())
    most = sorted(counts, key=lambda section: (-counts[section], section))[:sections]
    splits: dict[str, list[Record]] = {"train": [], "dev": [], "test": []}
    for record in by_text.values():
        if record.section in most:
            splits[split_of(record.name)].append(record)
    return Task(tuple(sorted(most)), **{split: tuple(rows) for split, rows in splits.items()})


def load(tsv: str | Path | None = None) -> Task:
    """The task from a TSV file, or from apt."""
    return build(available() if tsv is None else read_tsv(tsv))


def normalised(text: str) -> str:
    """The words of a text: two texts with equal words are one text."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def split_of(name: str) -> str:
    """80 / 10 / 10 by the name's SHA-256."""
    bucket = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % 10
    return ("train", "dev", "test")[max(0, bucket - 7)]


def sliced(records: Iterable[Record], rows: int) -> list[Record]:
    """`rows` records spread evenly over the archive: those with the smallest hashes, sorted by name."""
    # Salted: the bare name's hash decides the split.
    chosen = sorted(records, key=lambda r: hashlib.sha256(f"slice {r.name}".encode()).digest())[:rows]
    return sorted(chosen, key=lambda r: r.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tsv", help="read these records instead of asking apt")
    parser.add_argument("--slice", type=int, metavar="ROWS", help="print this many raw records and stop")
    args = parser.parse_args()
    try:
        records = available() if args.tsv is None else read_tsv(args.tsv)
    except DataError as error:
        sys.exit(f"error: {error}")
    if args.slice:
        for r in sliced(records, args.slice):
            print(r.name, r.section, r.text, sep="\t")
        return
    task = build(records)
    print(f"{len(records)} packages; train {len(task.train)}, dev {len(task.dev)}, test {len(task.test)}")
    print(f"labels {' '.join(task.labels)}\nsha256 {task.sha256}")


if __name__ == "__main__":
    main()
