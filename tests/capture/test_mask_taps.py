"""mask_taps: for every axis the gradients of autograd through explicit masks, in float64, one sample at a time."""

import re

import pytest
import torch
from mask_gradients import close, samples_of

from pyprune.capture.collect import collect
from pyprune.capture.cotangent import EmbeddingProbe, NegativeLogLikelihood
from pyprune.capture.masking import masked
from pyprune.core.batches import Samples
from pyprune.core.errors import InputError
from pyprune.models.adapter import adapter_for
from pyprune.models.inputs import example_inputs
from pyprune.testing.models import tiny_model
from pyprune.testing.zoo import ZOO

PROBE, SINGLE = EmbeddingProbe(seed=3), {"max_tokens": 1, "max_values": 1}
ASKED = ("qk_dims", "vo_dims", "layers", "tokens")


def images(n=4, size=(12, 12)):
    generator = torch.Generator().manual_seed(1)
    return Samples([{"pixel_values": torch.randn(3, *size, generator=generator).double()} for _ in range(n)])


def rows_of(model):
    """Samples of whatever the model reads: those of its example inputs that are real."""
    if "pixel_values" in (inputs := example_inputs(model)):
        return images(3, inputs["pixel_values"].shape[-2:])
    samples = samples_of("AutoModel", lengths=(7, 3, 5))
    if "decoder_input_ids" in inputs:
        for row in samples.inputs:
            row["decoder_input_ids"] = row["input_ids"].flip(0)[:3]
    return samples


def setting(variant, axes, head=None, attention=None):
    model = tiny_model(variant, head or ZOO[variant].heads[0], torch.float64, attention)
    return model, adapter_for(model).anatomy(model, [a for a in axes if a in ASKED])


def gathered(model, anatomy, samples, probe=PROBE):
    """Gradients of all samples, in batches of several."""
    batches = samples.batches(max_padding=1.0) if "input_ids" in samples.inputs[0] else samples.batches()
    return collect(model, anatomy, batches, probe, samples.lengths).gradients


def by_autograd(model, anatomy, samples, names, probe=PROBE):
    """`[S, size]` for every group of `names`: through the masks of `capture.masking.masked`."""
    found = {name: [] for name in names}
    sizes = {g.name: g.size for g in anatomy.groups}
    for batch in samples.batches(**SINGLE):
        masks = {name: torch.ones(sizes[name], dtype=torch.float64, requires_grad=True) for name in names}
        with masked(model.requires_grad_(False), anatomy, masks):
            value = probe(model(**batch.inputs), batch, 0)
        for name, g in zip(names, torch.autograd.grad(value, list(masks.values())), strict=True):
            found[name].append((int(batch.index), g))
    return {name: torch.stack([g for _, g in sorted(rows, key=lambda row: row[0])]) for name, rows in found.items()}


def check(model, anatomy, axes):
    samples = rows_of(model)
    found = gathered(model, anatomy, samples)
    names = [g.name for g in anatomy.groups if g.axis in axes]
    assert {g.axis for g in anatomy.groups if g.name in names} == set(axes)
    close({name: found[name] for name in names}, by_autograd(model, anatomy, samples, names))
    assert all((found[name] != 0).any() for name in names)


HEADS = ["bert", "distilbert", "llama", "phi3", "phi3-partial", "gpt2", "gpt_neox", "bart", "t5", "vit"]


@pytest.mark.parametrize("variant", HEADS)
def test_dimensions_of_heads(variant):
    """Of projections apart, fused, interleaved and transposed, with rotated pairs, and across attention."""
    check(*setting(variant, axes := ("qk_dims", "vo_dims")), axes)


@pytest.mark.parametrize("variant", ["mixtral", "qwen3_moe"])
def test_experts_and_their_neurons(variant):
    check(*setting(variant, ()), ("experts", "neurons"))


def test_channels_between_convolutions():
    check(*setting("resnet", (), "AutoModel"), ("channels",))


@pytest.mark.parametrize("variant", ["qwen3", "olmo2", "gemma3"])
def test_dimensions_of_heads_behind_norms(variant):
    """A factor of what the norm over queries puts out, whose own statistics stay."""
    model, anatomy = setting(variant, ("qk_dims",))
    samples = rows_of(model)
    found = gathered(model, anatomy, samples)
    for block in (b for b in anatomy.blocks if b.units.axis == "qk_dims"):
        cut = next(cut for cut in block.norms if "q_norm" in cut.tensor)
        places, rows = cut.positions(torch.arange(block.units.size)), []
        for batch in samples.batches(**SINGLE):
            mask = torch.ones(block.units.size, dtype=torch.float64, requires_grad=True)

            def multiply(_, __, y, places=places, mask=mask):
                factors = torch.ones(y.shape[-1], dtype=y.dtype).index_put(
                    (places,), mask[:, None].expand(places.shape)
                )
                return y * factors

            handle = model.get_submodule(cut.module).register_forward_hook(multiply)
            value = PROBE(model.requires_grad_(False)(**batch.inputs), batch, 0)
            rows.append((int(batch.index), torch.autograd.grad(value, mask)[0]))
            handle.remove()
        truth = torch.stack([g for _, g in sorted(rows, key=lambda row: row[0])])
        close({block.units.name: found[block.units.name]}, {block.units.name: truth})


@pytest.mark.parametrize("variant", ["bert", "llama", "gemma3", "bart", "vit"])
def test_layers(variant):
    check(*setting(variant, ("layers",)), ("layers",))


def written_out(model, pixels, masks):
    """A pre-norm ViT whose keys have weights; behind the last layer a token gives way to the mean of all."""
    x, weights = model.embeddings(pixels), torch.ones(10, dtype=torch.float64)
    for layer, mask in zip(model.layers, masks, strict=True):
        weights = weights * torch.cat([torch.ones(1, dtype=torch.float64), mask])
        y, attention = layer.layernorm_before(x), layer.attention
        q, k, v = (
            p(y).unflatten(-1, (4, -1)).transpose(1, 2) for p in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        shares = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).exp() * weights
        x = x + attention.o_proj((shares / shares.sum(-1, keepdim=True) @ v).transpose(1, 2).flatten(2))
        x = x + layer.mlp(layer.layernorm_after(x))
    mean = (x * weights[:, None]).sum(1, keepdim=True) / weights.sum()
    return model.layernorm(mean + weights[:, None] * (x - mean))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("read", ["class", "all"])
def test_tokens(read, attention):
    model, anatomy = setting("vit", ("tokens",), "AutoModel", attention)
    samples, generator = images(), torch.Generator().manual_seed(5)
    probes = torch.randn(len(samples), 10, 32, generator=generator, dtype=torch.float64)
    if read == "class":
        probes[:, 1:] = 0

    def probe(outputs, batch, draw):
        return (outputs.last_hidden_state.tanh() * probes[batch.index]).sum()

    truth = []
    for s, row in enumerate(samples.inputs):
        masks = [torch.ones(9, dtype=torch.float64, requires_grad=True) for _ in range(3)]
        states = written_out(model.requires_grad_(False), row["pixel_values"][None], masks)
        truth.append(torch.autograd.grad((states[0].tanh() * probes[s]).sum(), masks))
    names = [g.units.name for g in anatomy.token_groups]
    expected = {name: torch.stack(column) for name, column in zip(names, zip(*truth, strict=True), strict=True)}
    found = gathered(model, anatomy, samples, probe)
    close({name: found[name] for name in names}, expected)


def test_the_weight_of_a_key_is_what_its_mask_is():
    """At 0 the written out model is that in which the token is hidden, for whoever reads the others."""
    model, anatomy = setting("vit", ("tokens",), "AutoModel")
    pixels = images(2).batches()[0].inputs["pixel_values"]
    masks = [torch.ones(9, dtype=torch.float64) for _ in range(3)]
    masks[1][4] = 0
    with torch.no_grad():
        expected = written_out(model, pixels, masks)
        with masked(model, anatomy, {"layers.1.tokens": masks[1]}):
            found = model(pixels).last_hidden_state
    assert float((found - expected[:, [t for t in range(10) if t != 5]]).abs().max()) < 1e-10


@pytest.mark.parametrize("variant", ["siglip", "clip", "dinov2", "deit"])
def test_tokens_of_every_kind_of_encoder(variant):
    """Kernel and written attention agree, and no token of no layer is left out."""
    found = []
    for attention in ("sdpa", "eager"):
        model, anatomy = setting(variant, ("tokens",), attention=attention)
        rows = {n: t.double() if t.is_floating_point() else t for n, t in example_inputs(model).items()}
        samples = Samples([{n: t[i] for n, t in rows.items()} for i in range(2)])
        found.append(gathered(model, anatomy, samples))
    for group in anatomy.token_groups:
        kernel, written = (one[group.units.name] for one in found)
        assert torch.allclose(kernel, written, atol=1e-4 * float(kernel.abs().max())), group.units.name
        assert (kernel != 0).any(0).all(), group.units.name


def test_the_hidden_width_has_no_mask_of_this_kind():
    model = tiny_model("bert", dtype=torch.float64)
    anatomy = adapter_for(model).anatomy(model, ["hidden"])
    samples = rows_of(model)
    with pytest.raises(InputError, match=re.escape("mask gradients: not possible for the axis hidden; use a crit")):
        gathered(model, anatomy, samples)


def test_sampled_labels_of_a_classifier_of_images():
    """What the recipe differentiates: squares of these are the Fisher information of a patch."""
    model, anatomy = setting("vit", ("tokens",), "AutoModelForImageClassification")
    cotangent = NegativeLogLikelihood("sampled", False, model.config)
    found = gathered(model, anatomy, images(), cotangent)
    assert all((found[g.units.name] != 0).all() for g in anatomy.token_groups)
