"""What the matrices of tests share: running a model, leaving its checkpoint, and reloading all of them at once."""

import inspect
import json
import subprocess
import sys

import torch
from torch.utils.flop_counter import FlopCounterMode

from pyprune.capture.masking import masked
from pyprune.models.inputs import example_inputs
from pyprune.slicing.slice import slice_

ROUNDING = 1e-10  # float64


@torch.no_grad()
def run(model, inputs):
    cached = {"use_cache": False} if "use_cache" in vars(model.config) else {}
    torch.manual_seed(0)  # ViLT shuffles the patches of an image
    return model(**inputs, **cached)


def inputs_of(model):
    return {k: v.to(model.dtype) if v.is_floating_point() else v for k, v in example_inputs(model).items()}


def save(model, inputs, outputs, folder):
    model.save_pretrained(folder)
    torch.save((inputs, flat(outputs)), folder / "expected.pt")
    (folder / "class.json").write_text(json.dumps(type(model).__name__))


def weights(model):
    """Those of matrices."""
    tables = ("position", "bias_table")
    return sum(p.numel() for n, p in model.named_parameters() if p.dim() > 1 and not any(t in n for t in tables))


def flops(model, inputs):
    # The counter follows modules by gradient hooks, which parameters that are a module's input do not take.
    with FlopCounterMode(display=False) as counter:
        run(model.requires_grad_(False), inputs)
    return counter.get_total_flops()


def check_generation(dense, adapter, anatomy, plan, chunked=False):
    """The sliced model generates what the masked one does, with either kind of cache; `chunked` fills one in parts."""
    inputs = example_inputs(dense, padding="left")
    given = ("input_ids", "attention_mask", "input_features", "pixel_values", "flattened_patches")
    inputs = {k: v for k, v in inputs.items() if k in given}
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    if "pixel_values" not in inputs:  # else the model knows its padding, and BLIP is told by itself
        options["pad_token_id"] = 1
    with masked(dense, anatomy, plan):
        expected = dense.generate(**inputs, **options, use_cache=False)
    model = slice_(dense, adapter, plan)
    assert torch.equal(model.generate(**inputs, **options, use_cache=True), expected)
    if model._can_compile_fullgraph:
        static = {"cache_implementation": "static", "disable_compile": True}
        assert torch.equal(model.generate(**inputs, **options, **static), expected)
        if chunked:
            assert torch.equal(model.generate(**inputs, **options, **static, prefill_chunk_size=4), expected)


def flat(outputs):
    """Tensors of an output, those inside tuples included."""
    found = []
    for value in outputs.values() if isinstance(outputs, dict) else outputs:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, (dict, tuple, list)):
            found += flat(value)
    return found


RELOAD = """
import json, sys
from pathlib import Path

{FLAT}
for argument in sys.argv[1:]:
    if argument == "import pyprune":
        import pyprune
        continue
    import torch, transformers
    torch.set_num_threads(1)
    for folder in sorted(Path(argument).iterdir()):
        inputs, expected = torch.load(folder / "expected.pt")
        model_class = getattr(transformers, json.loads((folder / "class.json").read_text()))
        options = {"dtype": "auto", "experts_implementation": "eager", "output_loading_info": True}
        model, info = model_class.from_pretrained(folder, **options)
        for parameter in model.parameters():  # where a file left them aligned otherwise, products are rounded otherwise
            parameter.data = parameter.data.clone()
        cached = {"use_cache": False} if "use_cache" in vars(model.config) else {}
        torch.manual_seed(0)
        with torch.no_grad():
            outputs = flat(model.eval()(**inputs, **cached))
        same = 0 < len(outputs) == len(expected) and all(map(torch.equal, outputs, expected))
        row = [str(folder), same, sorted(k for k, v in info.items() if v), "pyprune" in sys.modules]
        print(json.dumps(row))
""".replace("{FLAT}", inspect.getsource(flat))


def check_reload(checkpoints=None, alone=None):
    """Another process loads every checkpoint in a folder after `import pyprune`: all weights, the same outputs.

    It loads those in the folder `alone` before that, or nothing else.
    """
    expected = {str(path): [True, [], True] for path in (checkpoints.iterdir() if checkpoints else ())}
    expected |= {str(path): [True, [], False] for path in (alone.iterdir() if alone else ())}
    assert expected, "the tests before leave checkpoints: run the whole file"
    arguments = [*([alone] if alone else []), *(["import pyprune", checkpoints] if checkpoints else [])]
    command = [sys.executable, "-c", RELOAD, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    found = {folder: row for folder, *row in rows}
    assert found.keys() == expected.keys()
    wrong = {folder: row for folder, row in found.items() if row != expected[folder]}
    assert not wrong, wrong
