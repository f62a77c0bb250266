"""`pyprune info`: versions, devices, and which kernel backends run here."""

from __future__ import annotations

import json
import platform

from pyprune.cli import options as opt


def info(as_json: opt.Json = False) -> None:
    """Show versions, devices, and every op x backend with the reason where one is not available."""
    import torch
    import transformers
    from rich.console import Console
    from rich.table import Table

    import pyprune
    from pyprune import ops
    from pyprune.models.registry import FAMILIES

    rows = [(row.op, row.backend, row.available, row.reason) for row in ops.table()]
    facts = {
        "pyprune": pyprune.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "cpu": f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads",
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "model types": ", ".join(sorted(FAMILIES)),
    }
    if as_json:
        ops_rows = [dict(zip(("op", "backend", "available", "reason"), row, strict=True)) for row in rows]
        print(json.dumps({**facts, "ops": ops_rows}))
        return
    for name, value in facts.items():
        print(f"{name:<14}{value}")
    table = Table("op", "backend", "available", "reason")
    for op, backend, available, reason in rows:
        table.add_row(op, backend, "yes" if available else "no", reason or "")
    Console().print(table)
