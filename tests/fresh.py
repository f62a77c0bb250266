"""Processes that have imported transformers and nothing of pyprune; this module must not import it either.

Importing torch and transformers takes ten seconds of CPU time, as long as hundreds of tiny checkpoints take to load. So
one process per run of the tests imports them, and every other is forked from it.
"""

import gc
import json
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from pathlib import Path

PRELOADED = ["transformers.models.bert.modeling_bert", "transformers.models.auto.modeling_auto"]


def context():
    """Makes processes by forking one that has imported what all need."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(PRELOADED)
    return found


def fresh(function, *arguments):
    """What `function` of a module that imports nothing of pyprune returns in a process of its own."""
    with ProcessPoolExecutor(1, context(), _begin) as pool:
        return pool.submit(function, *arguments).result()


def _begin():
    assert "pyprune" not in sys.modules
    gc.freeze()  # what was imported stays, and no collection of garbage need look at it


def write_errors_to(path):
    """From here on, what this process writes to stderr goes to a file."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, sys.stderr.fileno())
    os.close(file)


def told(errors, function, *arguments):
    """What `function` returns, and what is written to stderr meanwhile, which goes to the file `errors`."""
    write_errors_to(errors)
    found = function(*arguments)
    return found, errors.read_text()


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


def sizes(head, folders, first=None):
    """The number of parameters of each checkpoint, all of which are loaded well; the module `first` is imported before.

    Whether pyprune is imported then, is as `first` says.
    """
    import transformers

    if first:
        import_module(first)
    found = []
    for folder in folders:
        model, info = getattr(transformers, head).from_pretrained(folder, output_loading_info=True)
        assert not any(info.values()), info
        found.append(model.num_parameters())
    assert ("pyprune" in sys.modules) == (first == "pyprune")
    return found


def logits(folders):
    """(ids, logits) of the texts beside each checkpoint, by its tokenizer and its model in float64."""
    import torch
    import transformers

    torch.set_num_threads(1)
    rows = []
    for folder in folders:
        name, texts = torch.load(folder / "texts.pt")
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        options = {"dtype": torch.float64, "output_loading_info": True}
        model, info = getattr(transformers, name).from_pretrained(folder, **options)
        assert not any(info.values()), info
        ids = [tokenizer(text).input_ids for text in texts]
        with torch.no_grad():
            rows.append((ids, [model(input_ids=torch.tensor([row])).logits[0].numpy() for row in ids]))
    assert "pyprune" not in sys.modules
    return rows


def stalled(arguments, folder, errors):
    """The command with these arguments, run in `folder`, which waits where it is to tune; its stderr is a file."""
    import signal
    import time

    import pyprune.recipes.surgeon
    from pyprune.cli import main

    write_errors_to(errors)
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs ignore
    pyprune.recipes.surgeon.refit = lambda *_: time.sleep(60)
    sys.argv = ["pyprune", *arguments]
    main()
