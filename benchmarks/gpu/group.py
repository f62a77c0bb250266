"""Commands whose children end with them."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any


@contextmanager
def group(command: Sequence[str], environment: Mapping[str, str], **streams: Any) -> Iterator[subprocess.Popen]:
    """A process in a group of its own; the whole group is gone afterwards, however it ended."""
    process = subprocess.Popen(list(command), env=dict(environment), start_new_session=True, **streams)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def run(command: Sequence[str], environment: Mapping[str, str], limit_s: float) -> subprocess.CompletedProcess[str]:
    """Run to the end; stdout holds stderr too. Raises subprocess.TimeoutExpired."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with group(command, environment, **streams) as process:
        output, _ = process.communicate(timeout=limit_s)
    return subprocess.CompletedProcess(command, process.returncode, output)
