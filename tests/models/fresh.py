"""Processes that have imported transformers and nothing of pyprune; this module must not import it either.

Importing torch and transformers takes ten seconds of CPU time, as long as hundreds of tiny checkpoints take to load. So
one process per run of the tests imports them, and every other is forked from it.
"""

import json
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path


def fresh(function, *arguments):
    """What `function` of a module that imports nothing of pyprune returns in a process of its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["transformers.models.bert.modeling_bert", "transformers.models.auto.modeling_auto"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def flat(outputs):
    """Tensors of an output, those inside tuples included."""
    import torch

    found = []
    for value in outputs.values() if isinstance(outputs, dict) else outputs:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, (dict, tuple, list)):
            found += flat(value)
    return found


def reload(alone, checkpoints):
    """{folder: [same outputs, what loading tells, whether pyprune is imported]} for the checkpoints in the two folders.

    Those in `alone` are loaded first; pyprune is imported for the others. Either may be None.
    """
    import torch
    import transformers

    assert "pyprune" not in sys.modules
    torch.set_num_threads(1)
    rows = {}
    for parent in (alone, checkpoints):
        if parent is not None and parent == checkpoints:
            import pyprune  # noqa: F401
        for folder in sorted(Path(parent).iterdir()) if parent else ():
            inputs, expected = torch.load(folder / "expected.pt")
            model_class = getattr(transformers, json.loads((folder / "class.json").read_text()))
            options = {"dtype": "auto", "experts_implementation": "eager", "output_loading_info": True}
            model, info = model_class.from_pretrained(folder, **options)
            for parameter in model.parameters():  # files may align them otherwise, and then products round otherwise
                parameter.data = parameter.data.clone()
            cached = {"use_cache": False} if "use_cache" in vars(model.config) else {}
            torch.manual_seed(0)
            with torch.no_grad():
                outputs = flat(model.eval()(**inputs, **cached))
            same = 0 < len(outputs) == len(expected) and all(map(torch.equal, outputs, expected))
            rows[str(folder)] = [same, sorted(k for k, v in info.items() if v), "pyprune" in sys.modules]
    return rows


def refusals(folders):
    """[error's name, what it says] of each checkpoint that transformers alone refuses, ["loaded", folder] of others."""
    import transformers

    found = []
    for folder in folders:
        try:
            name = json.loads((Path(folder) / "config.json").read_text())["architectures"][0]
            getattr(transformers, name).from_pretrained(folder)
        except (ValueError, RuntimeError) as error:
            found.append([type(error).__name__, str(error)])
        else:
            found.append(["loaded", folder])
    assert "pyprune" not in sys.modules
    return found
