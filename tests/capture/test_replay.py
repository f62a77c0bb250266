"""Replay: block after block gives what the model's own forward gives, in every family."""

import copy
from dataclasses import replace

import pytest
import torch
from mask_gradients import anatomy_of, samples_of

from pyprune.capture.replay import SettledLayers, advance, context, resumed, start, tensors_in
from pyprune.core.errors import MismatchError
from pyprune.models.adapter import adapter_for
from pyprune.slicing.slice import slice_
from pyprune.testing import numerics
from pyprune.testing.models import VARIANTS, heads, random_plan, tiny_model

CASES = [(variant, head) for variant in VARIANTS for head in (heads(variant)[0], heads(variant)[-1])]
CASES += [
    ("deberta-v2-relative", "AutoModel"),
    ("modernbert", "AutoModel"),
]  # layers that return tuples; local attention


def batches_of(padding):
    # Less padding than a sliding window: eager attention puts out NaN for a query that sees padding alone.
    return samples_of("", lengths=(11, 8, 11)).batches(max_padding=padding)


@torch.no_grad()
def layer_outputs(model, anatomy, batch):
    """What every layer puts out in the model's own forward, by hooks."""
    outputs = []

    def keep(_, args, output):
        outputs.append(output[0] if isinstance(output, tuple) else output)

    handles = [model.get_submodule(path).register_forward_hook(keep) for path in anatomy.layers]
    model(**batch.inputs)
    for handle in handles:
        handle.remove()
    return outputs


def walk(model, anatomy, batch):
    """The hidden state behind every block, and the input of every projection."""
    hidden, calls = start(model, anatomy, batch)
    states, inputs = [], []
    for block in anatomy.blocks:
        x = context(model, block, hidden, calls[block.layer_path])
        _, hidden = advance(model, block, hidden, x)
        states.append(hidden)
        inputs.append(x)
    return states, inputs


@pytest.mark.parametrize(("variant", "head"), CASES)
@pytest.mark.parametrize("attention", [None, "eager"])
@pytest.mark.parametrize("pruned", [False, True])
def test_walking_is_the_models_own_forward(variant, head, attention, pruned):
    model = tiny_model(variant, head, torch.float64, attention)
    if pruned:
        slice_(model, adapter_for(model), random_plan(anatomy_of(model)))
    anatomy = anatomy_of(model)
    for padding in (0.0, 1.0):
        for batch in batches_of(padding):
            states, inputs = walk(model, anatomy, batch)
            real = batch.token_mask
            for state, expected in zip(states[1::2], layer_outputs(model, anatomy, batch), strict=True):
                numerics.ratio(state[real], expected[real])
            for block, x in zip(anatomy.blocks, inputs, strict=True):
                assert x.shape == (*real.shape, block.units.size * block.units.width)


@pytest.mark.parametrize(("variant", "head"), CASES)
@torch.no_grad()
def test_a_pass_that_begins_at_a_later_layer_puts_out_the_same(variant, head):
    model = tiny_model(variant, head, torch.float64)
    anatomy, batch = anatomy_of(model), batches_of(1.0)[0]
    ran = []
    for block in anatomy.blocks:
        projection = model.get_submodule(block.projection)
        projection.register_forward_hook(lambda *_, name=block.units.name: ran.append(name))
    names = [block.units.name for block in anatomy.blocks]
    for layer, path in enumerate(anatomy.layers):
        hidden, calls = start(model, anatomy, batch)
        for block in anatomy.blocks[: 2 * layer]:
            _, hidden = advance(model, block, hidden, context(model, block, hidden, calls[block.layer_path]))
        with resumed(model, anatomy, path) as given:
            ran.clear()
            whole = model(**batch.inputs)[0]
            assert ran == names
            ran.clear()
            given.hidden = hidden
            partly = model(**batch.inputs)[0]
            assert ran == names[2 * layer :]
        numerics.ratio(partly, whole)
    numerics.exact(model(**batch.inputs)[0], whole)


@torch.no_grad()
def test_settled_layers_run_once_a_batch_and_are_not_changed_by_their_readers():
    model = tiny_model("bart", dtype=torch.float64)
    anatomy, batches = anatomy_of(model), batches_of(0.0)
    settled, ran = SettledLayers(model, anatomy, lambda _: True), []
    for path in anatomy.layers:
        projection = next(b.projection for b in anatomy.blocks if b.layer_path == path)
        model.get_submodule(projection).register_forward_hook(lambda *_, path=path: ran.append(path))
    expected = [model(**batch.inputs)[0] for batch in batches]
    block = next(i for i, b in enumerate(anatomy.blocks) if b.units.name.endswith("cross_heads"))
    later = {b.layer_path for b in anatomy.blocks[block:]}
    assert 0 < len(later) < len(anatomy.layers)
    for time in range(3):
        ran.clear()
        with settled.before(block):
            for i, batch in enumerate(batches):
                settled.enter(i)
                numerics.exact(model(**batch.inputs)[0], expected[i])
        assert set(ran) == (later if time else set(anatomy.layers))
    for output in settled.found.values():
        assert all(t.isfinite().all() for t in tensors_in(output))
    with settled.before(block):
        settled.enter(0)
        first = model.get_submodule(anatomy.layers[0])
        for t in tensors_in(first(None)):
            t.fill_(torch.nan)
        settled.enter(0)
        numerics.exact(model(**batches[0].inputs)[0], expected[0])


@torch.no_grad()
def test_a_layer_behind_one_that_may_change_is_run():
    model = tiny_model("bert", dtype=torch.float64)
    anatomy, batch = anatomy_of(model), batches_of(0.0)[0]
    backwards = replace(anatomy, blocks=anatomy.blocks[::-1])  # as if the last layers were settled first
    settled = SettledLayers(model, backwards, lambda _: True)
    for _ in range(2):
        expected = model(**batch.inputs)[0]
        with settled.before(2):
            settled.enter(0)
            numerics.exact(model(**batch.inputs)[0], expected)
        model.encoder.layer[0].output.dense.weight.mul_(1.5)
    assert not settled.found


@pytest.mark.parametrize("variant", ["bert", "llama"])
def test_the_stream_is_the_sum_before_the_norm(variant):
    model = tiny_model(variant, dtype=torch.float64)
    anatomy = anatomy_of(model)
    (batch, *_) = batches_of(0.0)
    hidden, calls = start(model, anatomy, batch)
    block = anatomy.blocks[0]
    x = context(model, block, hidden, calls[block.layer_path])
    stream, after = advance(model, block, hidden, x)
    numerics.exact(stream, hidden + model.get_submodule(block.projection)(x))
    norm = model.encoder.layer[0].attention.output.LayerNorm if variant == "bert" else torch.nn.Identity()
    numerics.exact(after, norm(stream))


def test_the_model_is_left_as_it_was():
    model = tiny_model("llama", "AutoModelForCausalLM").train()
    model.config.use_cache = True
    batch, anatomy = batches_of(0.0)[0], anatomy_of(model)
    own = copy.copy(model.model.layers[1].forward)
    model.model.layers[1].forward = own  # on the instance, as libraries that place weights on devices do
    before = [set(vars(module)) for module in model.modules()]
    walk(model, anatomy, batch)
    assert [set(vars(module)) for module in model.modules()] == before
    assert vars(model.model.layers[1])["forward"] is own
    assert model.training
    assert model.config.use_cache
    assert not any(len(m._forward_pre_hooks) for m in model.modules())

    def fail(*args, **kwargs):
        raise RuntimeError("mid-way")

    model.model.norm.forward = fail
    with pytest.raises(RuntimeError, match="mid-way"):
        start(model, anatomy, batch)
    assert vars(model.model.layers[1])["forward"] is own
    assert "forward" not in vars(model.model.layers[0])


def test_task_heads_do_not_run():
    model = tiny_model("llama", "AutoModelForCausalLM")
    model.lm_head.register_forward_pre_hook(lambda *_: pytest.fail("the head ran"))
    start(model, anatomy_of(model), batches_of(0.0)[0])


def test_a_layer_without_its_projection_is_named():
    model = tiny_model("bert")
    anatomy = anatomy_of(model)
    hidden, calls = start(model, anatomy, batches_of(0.0)[0])
    first, *_, other = (block for block in anatomy.blocks if not block.entry)
    strange = type(first)(first.layer_path, other.projection, (), first.exit, first.units)
    with pytest.raises(MismatchError, match=r"layer\.0 ran without calling .*layer\.2"):
        context(model, strange, hidden, calls[first.layer_path])
