import sys
from functools import partial
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Run the command in this process, in an empty folder; returns (exit code, stdout, stderr).

    Latencies are of two calls: how long tiny models take is of no interest.
    """
    from pyprune.cli import main
    from pyprune.report import prune

    monkeypatch.setattr(prune, "latency", partial(prune.latency, repeats=2))

    monkeypatch.chdir(tmp_path)

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["pyprune", *map(str, args)])
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call
