"""Bad input, as every verb has to answer it."""

from pathlib import Path


def refuse(run, *args, says, writes=False):
    """Assert one line on stderr that holds `says`, exit code 2, and nothing written."""
    before = sorted(Path.cwd().rglob("*"))
    code, out, err = run(*args)
    assert code == 2, (out, err)
    assert out == ""
    line = err.strip().splitlines()[-1]
    assert line.startswith("pyprune: error:"), err
    assert len([x for x in err.strip().splitlines() if x.startswith("pyprune: error:")]) == 1
    assert says in line
    assert "Traceback" not in err
    assert sorted(Path.cwd().rglob("*")) == before
