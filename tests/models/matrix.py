"""What the matrices of tests share: running a model, leaving its checkpoint, and reloading all of them at once."""

import inspect
import json
import subprocess
import sys
from pathlib import Path

import torch

from pyprune.models.inputs import example_inputs

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
import torch, transformers
{IMPORT}

{FLAT}
torch.set_num_threads(1)
for folder in sorted(Path(sys.argv[1]).iterdir()):
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
    print(json.dumps([folder.name, same, sorted(k for k, v in info.items() if v)]))
assert "pyprune" in sys.modules or not {WITH}
""".replace("{FLAT}", inspect.getsource(flat))


def check_reload(checkpoints, with_pyprune=True):
    """Another process loads every checkpoint in a folder, with or without pyprune: all weights, the same outputs."""
    folders = {path.name for path in Path(checkpoints).iterdir()}
    assert folders, "the tests before leave checkpoints: run the whole file"
    code = RELOAD.replace("{IMPORT}", "import pyprune" if with_pyprune else "").replace("{WITH}", str(with_pyprune))
    done = subprocess.run([sys.executable, "-c", code, str(checkpoints)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert {name for name, *_ in found} == folders
    wrong = [row for row in found if row[1:] != [True, []]]
    assert not wrong, wrong
