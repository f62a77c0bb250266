"""What the matrices of tests share: running a model, leaving its checkpoint, and reloading all of them at once."""

import copy
import json

import pytest
import torch
from fresh import flat, fresh, reload
from torch.utils.flop_counter import FlopCounterMode

from pyprune.capture.masking import masked
from pyprune.models.inputs import example_inputs
from pyprune.slicing.check import max_difference
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
    note(type(model), inputs, outputs, folder)


def note(model_class, inputs, outputs, folder):
    """What `check_reload` needs to know of the checkpoint in `folder`."""
    torch.save((inputs, flat(outputs)), folder / "expected.pt")
    (folder / "class.json").write_text(json.dumps(model_class.__name__))


def weights(model):
    """Those of matrices."""
    tables = ("position", "bias_table")
    return sum(p.numel() for n, p in model.named_parameters() if p.dim() > 1 and not any(t in n for t in tables))


def flops(model, inputs):
    # The counter follows modules by gradient hooks, which parameters that are a module's input do not take.
    with FlopCounterMode(display=False) as counter:
        run(model.requires_grad_(False), inputs)
    return counter.get_total_flops()


def check_slices(dense, adapter, axes, plans, folder):
    """Masked = sliced for every kind of `plans`, and what the sliced model costs is what its plan says.

    "keep-all" changes nothing. The other sliced models are left in folders that begin with `folder`.
    """
    anatomy, inputs = adapter.anatomy(dense, axes), inputs_of(dense)
    whole = run(dense, inputs)
    for kind, plan in plans.items():
        with masked(dense, anatomy, plan):
            expected = run(dense, inputs)
        model = slice_(copy.deepcopy(dense), adapter, plan)
        found = run(model, inputs)
        assert max_difference(expected, found) < ROUNDING, kind
        after, counts = adapter.anatomy(model, axes), anatomy.counts(plan.kept)
        assert {g.name: g.size for g in after.all_groups} == counts, kind
        assert anatomy.params(counts) == after.params(), kind
        assert anatomy.flops(12, counts) == pytest.approx(after.flops(12), rel=1e-12), kind
        if kind == "keep-all":
            assert max_difference(whole, found) == 0
            assert model.config.to_dict() == dense.config.to_dict()
            assert [type(m) for m in model.modules()] == [type(m) for m in dense.modules()]
        else:
            assert max_difference(whole, found) > 1e-6, kind
            save(model, inputs, found, folder.with_name(f"{folder.name}-{kind.replace(' ', '-')}"))
    assert max_difference(run(dense, inputs), whole) == 0


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


def check_reload(checkpoints=None, alone=None):
    """Another process loads every checkpoint in a folder after `import pyprune`: all weights, the same outputs.

    It loads those in the folder `alone` before that, or nothing else.
    """
    expected = {str(path): [True, [], True] for path in (checkpoints.iterdir() if checkpoints else ())}
    expected |= {str(path): [True, [], False] for path in (alone.iterdir() if alone else ())}
    assert expected, "the tests before leave checkpoints: run the whole file"
    found = fresh(reload, alone, checkpoints)
    assert found.keys() == expected.keys()
    wrong = {folder: row for folder, row in found.items() if row != expected[folder]}
    assert not wrong, wrong
